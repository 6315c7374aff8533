// The tasks this page knows, each at its newest version: plain state, no DOM and no network.

import { Gone } from './gone.js';

/** @typedef {import('./client.js').Snapshot} Snapshot */

export const TASKS_MAX = 600;

/** @param {?Snapshot} task */
export const isOpen = (task) => task?.status === 'pending' || task?.status === 'processing';

export class Tasks {
  /** @type {Map<string, Snapshot>} */
  #known = new Map();
  #gone = new Gone();

  /** @param {string} taskId @returns {?Snapshot} */
  get(taskId) {
    return this.#known.get(taskId) ?? null;
  }

  get size() {
    return this.#known.size;
  }

  /** Take in a snapshot; false where a newer one is known, or the task is no more. @param {Snapshot} task */
  accept(task) {
    const known = this.#known.get(task.taskId);
    if (this.#gone.has(task.taskId) || (known && known.version >= task.version)) return false;
    this.#known.set(task.taskId, task);
    if (this.#known.size > TASKS_MAX) this.#known.delete(this.newest(TASKS_MAX + 1)[TASKS_MAX].taskId);
    return true;
  }

  /** @param {string} taskId */
  delete(taskId) {
    this.#gone.add(taskId);
    this.#known.delete(taskId);
  }

  /** What has no version: where in the queue, how long yet. @param {Partial<Snapshot> & {taskId: string}} advice */
  advise({ taskId, queuePosition, etaMs }) {
    const known = this.#known.get(taskId);
    if (known) this.#known.set(taskId, { ...known, queuePosition, etaMs });
  }

  /** @param {number} count @returns {Snapshot[]} newest first */
  newest(count) {
    const order = (task) => task.createdAt + task.taskId;
    return [...this.#known.values()].sort((a, b) => (order(a) < order(b) ? 1 : -1)).slice(0, count);
  }
}
