// Follows all of the caller's tasks, those to come included, over one connection. How that is opened, kept and
// fallen back from is in client.js; here is only what "all" means to each transport.

import { isTerminal, parts } from './client.js';

const { Following, OneTask, Server, WEBSOCKET } = parts;

const TASKS_MAX = 1_000;
const LISTED = 50;
const POLL_MS_IDLE = 3_000;
const POLL_SECONDS = 10; // of one open task: others change meanwhile
const GONE = Infinity; // the version that nothing which is still said of a deleted task can be above

/**
 * Follow until `close()`; onUpdate gets each task's versions in rising order, onDeleted each task that is no more.
 *
 * @param {import('./types.js').AllOptions} [options]
 * @returns {import('./client.js').Handle}
 */
export function followAll(options = {}) {
  return begin(options);
}

/**
 * The same over a WebSocket and nothing else, for many changes a second.
 *
 * @param {import('./types.js').AllOptions} [options]
 * @returns {import('./client.js').Handle}
 */
export function followAllBySocket(options = {}) {
  return begin(options, [WEBSOCKET]);
}

function begin(options, transports) {
  const topic = new AllTasks(new Server(options), options.onDeleted);
  let wasLive = false;
  const onState = (state) => {
    options.onState?.(state);
    if (state.phase !== 'live') return;
    if (wasLive) topic.compare();
    wasLive = true;
  };
  const following = new Following(topic, { ...options, onState }, transports);
  following.done.catch(() => topic.close());
  return following;
}

/**
 * Which of the tasks `known` before a list was asked for are no more: they belong where it was read, and are not there.
 *
 * @param {Iterable<{taskId: string, createdAt: string|number}>} known times as in a task, or in ms
 * @param {{taskId: string, createdAt: string}[]} listed newest first, from the first on
 * @param {boolean} whole whether there are no older ones
 * @returns {string[]}
 */
export function vanished(known, listed, whole) {
  const there = new Set(listed.map(({ taskId }) => taskId));
  const oldestMs = whole ? -Infinity : Date.parse(listed.at(-1)?.createdAt ?? '');
  return [...known]
    .filter(({ taskId, createdAt }) => !there.has(taskId) && new Date(createdAt).getTime() > oldestMs)
    .map(({ taskId }) => taskId);
}

/** All of the caller's tasks; the cursor is opaque, the versions drop what comes twice. */
class AllTasks {
  #seen = new Map(); // taskId → {taskId, version, createdAt, open}
  #cursor = '';
  #listed = false;
  #onDeleted;

  constructor(server, onDeleted) {
    this.server = server;
    this.#onDeleted = onDeleted;
  }

  close() {
    this.#onDeleted = undefined;
  }

  get busy() {
    return this.#newestOpen() !== undefined;
  }

  get eventsUrl() {
    return this.server.url('/events', { after: this.#cursor });
  }

  get subscription() {
    return { all: true, after: this.#cursor || undefined };
  }

  accept(task, cursor) {
    if (cursor) this.#cursor = cursor;
    const { taskId, version, createdAt } = task;
    if (this.#seen.get(taskId)?.version >= version) return false;
    this.#see({ taskId, version, createdAt, open: !isTerminal(task) });
    return true;
  }

  /** A task is no more; its id is kept, so that nothing said of it before, and heard late, brings it back. */
  forget(taskId) {
    if (this.#seen.get(taskId)?.version === GONE) return;
    this.#see({ taskId, version: GONE, createdAt: '', open: false });
    this.#onDeleted?.(taskId);
  }

  #see(task) {
    this.#seen.set(task.taskId, task);
    if (this.#seen.size > TASKS_MAX) this.#seen.delete(this.#seen.keys().next().value);
  }

  ends() {
    return false;
  }

  /** Deletions are not replayed: what went while nothing was heard shows by its absence. */
  compare() {
    return this.#list().catch(() => {}); // it is done again with the next connection
  }

  async #list(abort) {
    const known = [...this.#seen.values()];
    const { tasks, cursor } = await this.server.request('', { limit: LISTED }, { abort });
    vanished(known, tasks, !cursor).forEach((taskId) => this.forget(taskId));
    return tasks;
  }

  #newestOpen() {
    return [...this.#seen.values()].filter((task) => task.open).sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1))[0];
  }

  /** The list shows what is new; between two lists a long poll on the newest open task is as good as a push. */
  async ask(wait, abort) {
    const open = this.#newestOpen();
    this.#listed = !(wait && open && this.#listed);
    if (this.#listed) {
      const tasks = await this.#list(abort);
      return { tasks: tasks.reverse(), againMs: tasks.every(isTerminal) ? POLL_MS_IDLE : 0 };
    }
    try {
      return await new OneTask(open.taskId, open.version, this.server).ask(Math.min(wait, POLL_SECONDS), abort);
    } catch (error) {
      if (!error.gone) throw error;
      this.forget(open.taskId);
      return { tasks: [], againMs: 0 };
    }
  }
}
