// How many tasks were created and ended, and how long they took, by slots of ten seconds over the last ten minutes.
// Times are the server's, so what happened before the page was opened counts too. Durations are kept as a histogram
// in steps of 5 %: that is how exact a percentile is, and why it needs no memory a task.

export const SLOT_MS = 10_000;
export const SLOTS = 60;
const SLOTS_KEPT_MAX = 2 * SLOTS;
const STEP = Math.log(1.05);

/** @typedef {{created: number, completed: number, failed: number, durations: Map<number, number>}} Slot */

/** @returns {Slot} */
const empty = () => ({ created: 0, completed: 0, failed: 0, durations: new Map() });

export class Rates {
  /** @type {Map<number, Slot>} */
  #slots = new Map();

  /** @param {number} atMs */
  created(atMs) {
    this.#slot(atMs).created++;
  }

  /** @param {string} status @param {number} atMs @param {number} tookMs */
  ended(status, atMs, tookMs) {
    const slot = this.#slot(atMs);
    slot[status]++;
    if (status !== 'completed') return;
    const step = Math.round(Math.log(Math.max(1, tookMs)) / STEP);
    slot.durations.set(step, (slot.durations.get(step) ?? 0) + 1);
  }

  #slot(atMs) {
    const number = Math.floor(atMs / SLOT_MS);
    let slot = this.#slots.get(number);
    if (!slot) {
      slot = empty();
      this.#slots.set(number, slot);
      if (this.#slots.size > SLOTS_KEPT_MAX) this.#slots.delete(Math.min(...this.#slots.keys()));
    }
    return slot;
  }

  /** The last ten minutes, oldest first; the last slot is still under way. @param {number} nowMs @returns {Slot[]} */
  slots(nowMs) {
    const last = Math.floor(nowMs / SLOT_MS);
    return Array.from({ length: SLOTS }, (_, index) => this.#slots.get(last - SLOTS + 1 + index) ?? empty());
  }

  /** How many in the last minute: of the oldest slot the part that lies within. @param {number} nowMs */
  lastMinute(nowMs) {
    const slots = this.slots(nowMs).slice(-7);
    const part = 1 - (nowMs % SLOT_MS) / SLOT_MS;
    const count = (name) => Math.round(slots.reduce((sum, slot, index) => sum + slot[name] * (index ? 1 : part), 0));
    return { created: count('created'), completed: count('completed'), failed: count('failed') };
  }
}

/** Milliseconds that this share of tasks stayed below; null where there were none. @param {Slot[]} slots @param {number} share */
export function percentile(slots, share) {
  const steps = new Map();
  for (const { durations } of slots) for (const [step, n] of durations) steps.set(step, (steps.get(step) ?? 0) + n);
  const total = [...steps.values()].reduce((sum, n) => sum + n, 0);
  let below = 0;
  for (const step of [...steps.keys()].sort((a, b) => a - b)) {
    below += steps.get(step);
    if (below >= share * total) return Math.exp(step * STEP);
  }
  return null;
}
