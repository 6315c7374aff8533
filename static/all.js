// Follows all of the caller's tasks, those to come included, over one connection. How that is opened, kept and
// fallen back from is in client.js; here is only what "all" means to each transport.

import { isTerminal, parts } from './client.js';

const { Following, OneTask, Server, WEBSOCKET } = parts;

const TASKS_MAX = 1_000;
const LISTED = 50;
const POLL_MS_IDLE = 3_000;
const POLL_SECONDS = 10; // of one open task: others change meanwhile

/**
 * Follow until `close()`; onUpdate gets each task's versions in rising order.
 *
 * @param {import('./client.js').Options} [options]
 * @returns {import('./client.js').Handle}
 */
export function followAll(options = {}) {
  return new Following(new AllTasks(new Server(options)), options);
}

/**
 * The same over a WebSocket and nothing else, for many changes a second.
 *
 * @param {import('./client.js').Options} [options]
 * @returns {import('./client.js').Handle}
 */
export function followAllBySocket(options = {}) {
  return new Following(new AllTasks(new Server(options)), options, [WEBSOCKET]);
}

/** All of the caller's tasks; the cursor is opaque, the versions drop what comes twice. */
class AllTasks {
  #seen = new Map(); // taskId → {taskId, version, createdAt, open}
  #cursor = '';
  #listed = false;

  constructor(server) {
    this.server = server;
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
    this.#seen.set(taskId, { taskId, version, createdAt, open: !isTerminal(task) });
    if (this.#seen.size > TASKS_MAX) this.#seen.delete(this.#seen.keys().next().value);
    return true;
  }

  ends() {
    return false;
  }

  #newestOpen() {
    return [...this.#seen.values()].filter((task) => task.open).sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1))[0];
  }

  /** The list shows what is new; between two lists a long poll on the newest open task is as good as a push. */
  async ask(wait, abort) {
    const open = this.#newestOpen();
    this.#listed = !(wait && open && this.#listed);
    if (this.#listed) {
      const { tasks } = await this.server.request(this.server.url('', { limit: LISTED }), {}, { abort });
      return { tasks: tasks.reverse(), againMs: tasks.every(isTerminal) ? POLL_MS_IDLE : 0 };
    }
    try {
      return await new OneTask(open.taskId, open.version, this.server).ask(Math.min(wait, POLL_SECONDS), abort);
    } catch (error) {
      if (!error.gone) throw error;
      this.#seen.delete(open.taskId);
      return { tasks: [], againMs: 0 };
    }
  }
}
