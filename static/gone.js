// Ids of tasks that are no more: what was asked before and is answered late must not bring one back.

const IDS_MAX = 1_000;

export class Gone {
  /** @type {Set<string>} */
  #ids = new Set();

  /** @param {string} taskId beyond the bound the oldest goes */
  add(taskId) {
    this.#ids.add(taskId);
    if (this.#ids.size > IDS_MAX) this.#ids.delete(this.#ids.values().next().value);
  }

  /** @param {string} taskId */
  has(taskId) {
    return this.#ids.has(taskId);
  }
}
