// One stream for all the tasks a page follows. Each follow() of client.js holds a connection, and over HTTP/1.1 a browser
// opens six to a host; here any number share the stream of all the caller's tasks. It is that one, and not a stream of
// the tasks named, because then one more task opens nothing anew, and no change falls between two connections.

import { followAll } from './all.js';
import { Problem, parts } from './client.js';

const { OneTask, Server } = parts;
const REREAD_MS = 5_000;
/** What the server says of a task that was deleted. */
const NO_MORE = { status: 404, code: 'task_not_found', detail: 'There is no such task' };

/**
 * `follow` as in client.js, over one connection, which is opened with the first task and closed with the last.
 * It does not know whose the tasks are: call it anew for another user, when what it gave to this one is closed.
 *
 * @param {import('./types.js').Access} [access]
 * @returns {{follow: (taskId: string, options?: import('./types.js').Hooks & {after?: number}) => import('./types.js').Handle}}
 */
export function share(access = {}) {
  const server = new Server(access);
  /** @type {Set<Sharing>} */
  const all = new Set();
  let stream = null;
  let state = null;
  let timer;

  const readAll = () => all.forEach((one) => one.read());
  const to = (taskId, act) => all.forEach((one) => one.taskId === taskId && act(one));
  const hear = (said) => {
    state = said;
    all.forEach((one) => one.say(said));
    if (said.phase === 'live') readAll(); // joined first, read then: nothing falls between
    clearInterval(timer);
    if (said.via === 'polling') timer = setInterval(readAll, REREAD_MS); // the list it polls has the newest tasks only
  };
  const left = (one) => {
    all.delete(one);
    if (all.size) return;
    stream?.close();
    clearInterval(timer);
    stream = state = null;
  };

  return {
    follow(taskId, { after = 0, ...hooks } = {}) {
      const one = new Sharing(new OneTask(taskId, after, server), hooks, left);
      all.add(one);
      if (state) one.say(state);
      if (state?.phase === 'live') one.read();
      stream ??= followAll({
        ...access,
        onState: (said) => said.phase !== 'ended' && hear(said),
        onUpdate: (task) => to(task.taskId, (one) => one.take(task)),
        onDeleted: (taskId) => to(taskId, (one) => one.fail(new Problem(NO_MORE))),
        onPosition: (advice) => to(advice.taskId, (one) => one.hooks.onPosition?.(advice)),
      });
      return one;
    },
  };
}

/** One of those that share: a handle as follow() gives it. */
class Sharing {
  #topic;
  #left;
  #settle;
  #over = false;
  #via = 'EventSource';

  constructor(topic, hooks, left) {
    this.#topic = topic;
    this.#left = left;
    this.hooks = hooks;
    this.done = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.done.catch(() => {});
  }

  get taskId() {
    return this.#topic.taskId;
  }

  close() {
    this.#end({ phase: 'ended' }, () => this.#settle.reject(new DOMException('closed', 'AbortError')));
  }

  say(state) {
    this.#via = state.via;
    this.hooks.onState?.(state);
  }

  take(task) {
    if (this.#over) return;
    try {
      if (this.#topic.accept(task)) this.hooks.onUpdate?.(task);
    } finally {
      if (this.#topic.ends(task)) this.#end({ phase: 'ended' }, () => this.#settle.resolve(task));
    }
  }

  /** What the stream does not begin with, because it is older, and whether there is such a task. */
  async read() {
    try {
      const { tasks } = await this.#topic.ask(0);
      tasks.forEach((task) => this.take(task));
    } catch (error) {
      if (error.gone) this.fail(error); // else the stream breaks too, and it is read when that is back
    }
  }

  fail(error) {
    const problem = { code: error.code, detail: error.message };
    this.#end({ phase: 'failed', problem }, () => this.#settle.reject(error));
  }

  #end(state, settle) {
    if (this.#over) return;
    this.#over = true;
    this.#left(this);
    this.say({ via: this.#via, ...state });
    settle();
  }
}
