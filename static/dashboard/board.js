// The newest tasks of the user, slimmed, each at its newest version, and what this page saw of each. State only: it is
// told of changes as they come and is asked for what is to be shown once a frame. Whatever the rate, it stays bounded:
// beyond TASKS_MAX the oldest go, and from then on nothing as old is taken in again, so that the counts hold.

import { isTerminal } from '../client.js';
import { Gone } from '../gone.js';
import { Rates } from './rates.js';

export const TASKS_MAX = 2_000;
const TRIM_AT = TASKS_MAX + 200; // sorting for each new task would be dear
const PROMPT_CHARACTERS_MAX = 2_000;
const SEEN_MAX = 32;

/**
 * @typedef {{version: number, status: string, attempt: number, atMs: number, progress: ?number, message: ?string}} Moment
 * @typedef {{taskId: string, prompt: string, words: string, status: string, progress: ?number, message: ?string,
 *   result: ?string, error: ?string, cancelled: boolean, attempt: number, version: number, createdMs: number,
 *   updatedMs: number, seen: Moment[]}} Held
 */

/** How long a task took, or has taken so far. @param {Held} task @param {number} nowMs */
export const tookMs = (task, nowMs) => Math.max(0, (isTerminal(task) ? task.updatedMs : nowMs) - task.createdMs);

const newestFirst = (a, b) => b.createdMs - a.createdMs || (a.taskId < b.taskId ? 1 : -1);

export class Board {
  /** @type {Map<string, Held>} */
  #tasks = new Map();
  #horizonMs = -Infinity; // tasks created up to here are no longer held
  gone = new Gone();
  rates = new Rates();
  counts = { pending: 0, processing: 0, completed: 0, failed: 0 };

  get size() {
    return this.#tasks.size;
  }

  /** Whether older tasks had to go. */
  get full() {
    return this.#horizonMs > -Infinity;
  }

  /** @param {string} taskId */
  get(taskId) {
    return this.#tasks.get(taskId);
  }

  /** @param {import('../client.js').Snapshot} snapshot */
  accept(snapshot) {
    const known = this.#tasks.get(snapshot.taskId);
    if (this.gone.has(snapshot.taskId) || (known && known.version >= snapshot.version)) return;
    const task = held(snapshot, known);
    const forgotten = !known && task.createdMs <= this.#horizonMs;
    if (isTerminal(task) && !(known && isTerminal(known) && known.attempt === task.attempt)) {
      this.rates.ended(task.status, task.updatedMs, task.updatedMs - task.createdMs);
    }
    if (forgotten) return;
    if (known) this.counts[known.status]--;
    else this.rates.created(task.createdMs);
    this.counts[task.status]++;
    this.#tasks.set(task.taskId, task);
    if (this.#tasks.size > TRIM_AT) this.#trim();
  }

  /** The rates keep it: it was created, and ended. @param {string} taskId */
  delete(taskId) {
    this.gone.add(taskId);
    const known = this.#tasks.get(taskId);
    if (!known) return;
    this.counts[known.status]--;
    this.#tasks.delete(taskId);
  }

  /** There are older tasks than those held: none of them is to come in alone, when it changes. */
  settle() {
    this.#horizonMs = Math.max(this.#horizonMs, this.list(() => true, newestFirst).at(-1)?.createdMs ?? -Infinity);
    this.#trim();
  }

  #trim() {
    for (const task of this.list(() => true, newestFirst).slice(TASKS_MAX)) {
      this.#horizonMs = Math.max(this.#horizonMs, task.createdMs);
      this.counts[task.status]--;
      this.#tasks.delete(task.taskId);
    }
  }

  /** @param {(task: Held) => boolean} wanted @param {(a: Held, b: Held) => number} order */
  list(wanted, order) {
    return [...this.#tasks.values()].filter(wanted).sort((a, b) => order(a, b) || newestFirst(a, b));
  }
}

/** What is kept of a snapshot: no preview and no parameters, which can be large. */
function held(snapshot, known) {
  const { taskId, status, progress, message, result, error, cancelled, attempt, version } = snapshot;
  const prompt = known?.prompt ?? snapshot.prompt.slice(0, PROMPT_CHARACTERS_MAX);
  const updatedMs = Date.parse(snapshot.updatedAt);
  const seen = known?.seen ?? [];
  seen.push({ version, status, attempt, atMs: updatedMs, progress, message });
  if (seen.length > SEEN_MAX) seen.splice(Math.max(0, seen.findIndex((moment) => moment.status === 'processing')), 1);
  return {
    taskId, prompt, words: known?.words ?? prompt.toLowerCase(), status, progress, message, result, error, cancelled,
    attempt, version, createdMs: known?.createdMs ?? Date.parse(snapshot.createdAt), updatedMs, seen,
  };
}
