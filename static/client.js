// Follows tasks from a browser: EventSource, else WebSocket, else polling, each from the same cursor. One file, to be
// copied as it is (for tokens with stream.js). A transport is given up only when plain HTTP gets through where it does
// not: a server that is away is no reason.

/**
 * @typedef {import('./types.js').Snapshot} Snapshot
 * @typedef {import('./types.js').Access} Access
 * @typedef {import('./types.js').Options} Options
 * @typedef {import('./types.js').Handle} Handle
 */

const FALL_BACK_FAILURES = 2;
const FIRST_EVENT_MS_MAX = 8_000; // `sync` comes at once, unless a proxy holds it back
const SILENT_MS_MAX = 20_000; // heartbeats come each 15 s, unseen
const WATCH_MS = 60_000;
const BETTER_MS = 60_000; // until the first is tried again
const BACKOFF_MS_MIN = 500;
const BACKOFF_MS_MAX = 30_000;
const PING_MS = 20_000;
const REQUEST_MS_MAX = 10_000;
const LONG_POLL_SECONDS = 25;
const POLL_MS_MIN = 250;
const WAIT_MS_MAX = 600_000;

/** No success (RFC 9457); `code` is stable, the message for people. */
export class Problem extends Error {
  /** @param {{status?: number, code?: string, detail?: string}} body @param {number} [retryAfterMs] */
  constructor(body, retryAfterMs = 0) {
    super(body.detail ?? `The server answered ${body.status}`);
    this.name = 'Problem';
    this.status = body.status;
    this.code = body.code;
    this.retryAfterMs = retryAfterMs;
  }

  /** No such task: the one answer that ends following. */
  get gone() {
    return this.status === 404 || this.status === 410;
  }
}

/**
 * Follow one task to its end: `done` resolves with the terminal snapshot. It is rejected with a Problem where there is
 * no such task, with an AbortError after `close()`. `after` is the last version seen.
 *
 * @param {string} taskId
 * @param {Options & {after?: number}} [options]
 * @returns {Handle}
 */
export function follow(taskId, { after = 0, ...options } = {}) {
  return new Following(new OneTask(taskId, after, new Server(options)), options);
}

/**
 * Begin a task.
 *
 * @param {string} prompt
 * @param {Object<string, unknown>} [params]
 * @param {Access} [access]
 * @returns {Promise<{taskId: string, status: 'pending', version: number}>}
 */
export async function generate(prompt, params = {}, access = {}) {
  const server = new Server(access);
  return server.request(server.url(), { method: 'POST', body: JSON.stringify({ prompt, params }) });
}

/**
 * A page of the caller's tasks, newest first; `cursor` of the answer asks for the next one.
 *
 * @param {{limit?: number, cursor?: string} & Access} [options]
 * @returns {Promise<{tasks: Snapshot[], cursor?: string}>}
 */
export async function list({ limit = 20, cursor, ...access } = {}) {
  const server = new Server(access);
  return server.request(server.url('', { limit, cursor }));
}

class Server {
  constructor({ baseUrl = '/', getToken }) {
    this.root = new URL(baseUrl.replace(/\/?$/, '/'), globalThis.location?.href);
    this.getToken = getToken;
  }

  url(route = '', query = {}) {
    const made = new URL(`api/generate${route}`, this.root);
    for (const [name, value] of Object.entries(query)) if (value) made.searchParams.set(name, String(value));
    return made;
  }

  async fetch(target, { signal, ...init }) {
    const headers = init.body ? { 'Content-Type': 'application/json' } : {};
    const token = await this.getToken?.();
    if (token) headers.Authorization = `Bearer ${token}`;
    return fetch(target, { ...init, headers, signal });
  }

  async request(target, init = {}, { abort = new AbortController(), timeoutMs = REQUEST_MS_MAX } = {}) {
    const timer = setTimeout(() => abort.abort(), timeoutMs);
    try {
      const response = await this.fetch(target, { ...init, signal: abort.signal });
      if (response.ok) return await response.json();
      const body = await response.json().catch(() => ({}));
      throw new Problem({ ...body, status: response.status }, (Number(response.headers.get('Retry-After')) || 0) * 1000);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** @param {Snapshot} task */
export const isTerminal = (task) => task.status === 'completed' || task.status === 'failed';
// a timer of 2^31 ms is none
const bounded = (ms) => Math.min(WAIT_MS_MAX, ms) || BACKOFF_MS_MAX;
const backoffMs = (failures) =>
  Math.min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** Math.min(failures, 10)) * (0.5 + Math.random() / 2);

class OneTask {
  busy = true;

  constructor(taskId, after, server) {
    this.taskId = taskId;
    this.version = after;
    this.server = server;
  }

  get eventsUrl() {
    return this.server.url('/events', { taskId: this.taskId, after: this.version });
  }

  get subscription() {
    return { taskIds: [this.taskId], after: { [this.taskId]: this.version } };
  }

  /** Whether it is news. */
  accept(task) {
    if (task.taskId !== this.taskId || task.version <= this.version) return false;
    this.version = task.version;
    return true;
  }

  ends(task) {
    return task.taskId === this.taskId && isTerminal(task) && task.version >= this.version;
  }

  async ask(wait, abort) {
    const target = this.server.url('/status', { taskId: this.taskId, after: this.version, wait });
    const task = await this.server.request(target, {}, { abort, timeoutMs: REQUEST_MS_MAX + wait * 1000 });
    return { tasks: [task], againMs: task.pollAfterMs ?? 0 };
  }
}

/** Chooses the transport, and ends once. */
class Following {
  #topic;
  #transports;
  #hooks;
  #settle;
  #over = false;
  #rung = 0;
  #failures = 0; // of this transport while plain HTTP worked
  #rounds = 0; // of waiting, since anything last worked
  #link = null;
  #probe = null;
  #again = 0;
  #better = 0;
  #watch = 0;
  #heardAt = Date.now();
  #refused = false;

  constructor(topic, hooks, transports = topic.server.getToken ? WITH_TOKEN : TRANSPORTS) {
    this.#topic = topic;
    this.#transports = transports;
    this.#hooks = hooks;
    this.done = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.done.catch(() => {}); // who does not look at it is not told of it
    this.#listen('addEventListener');
    this.#watch = setInterval(() => this.#checkSilence(), WATCH_MS);
    this.#open();
  }

  close() {
    this.#end('ended', () => this.#settle.reject(new DOMException('closed', 'AbortError')));
  }

  #end(phase, settle, problem) {
    if (this.#over) return;
    this.#over = true;
    this.#drop();
    clearTimeout(this.#better);
    clearInterval(this.#watch);
    this.#listen('removeEventListener');
    this.#say(phase, problem);
    settle();
  }

  #listen(how) {
    document[how]('visibilitychange', this.#wake);
    for (const event of ['pageshow', 'online']) window[how](event, this.#wake);
  }

  #fail(problem) {
    this.#end('failed', () => this.#settle.reject(problem), { code: problem.code, detail: problem.message });
  }

  #say(phase, problem) {
    this.#hooks.onState?.({ via: this.#transports[this.#rung].via, phase, ...(problem && { problem }) });
  }

  #drop() {
    clearTimeout(this.#again);
    this.#link?.close();
    this.#probe?.close();
    this.#link = this.#probe = null;
  }

  #open() {
    if (this.#over) return;
    this.#drop();
    this.#refused = false;
    this.#heardAt = Date.now();
    if (!this.#failures && !this.#rounds) this.#say('connecting');
    this.#link = this.#start(this.#rung);
  }

  /** Once closed, nothing a transport says is listened to. */
  #start(rung) {
    let open = true;
    let stop = () => {};
    const link = {
      close() {
        open = false;
        stop();
      },
    };
    const heard = (act) => (...said) => {
      if (!open || this.#over) return;
      this.#heardAt = Date.now();
      act(...said);
    };
    const sink = {
      live: heard(() => this.#live(link, rung)),
      task: heard((task, cursor) => this.#take(task, cursor)),
      position: heard((advice) => this.#hooks.onPosition?.(advice)),
      pause: heard((problem) => (link === this.#probe ? this.#down(link) : this.#pause(problem))),
      down: heard((waitMs) => this.#down(link, waitMs)),
      gone: heard((problem) => this.#fail(problem)),
    };
    try {
      stop = this.#transports[rung].open(this.#topic, sink);
    } catch {
      setTimeout(sink.down); // there is no such thing here, or a policy forbids it
    }
    return link;
  }

  #live(link, rung) {
    if (link === this.#probe) {
      this.#link?.close();
      this.#link = link;
      this.#probe = null;
    }
    this.#rung = rung;
    this.#failures = this.#rounds = 0;
    this.#refused = false;
    if (rung) this.#better ||= setTimeout(() => this.#tryBetter(), BETTER_MS);
    this.#say('live');
  }

  #tryBetter() {
    this.#better = 0;
    if (this.#rung && !this.#probe) this.#probe = this.#start(0);
  }

  #take(task, cursor) {
    if (this.#over) return false;
    try {
      const news = this.#topic.accept(task, cursor);
      if (news) this.#hooks.onUpdate?.(task);
      return news;
    } finally {
      if (this.#topic.ends(task)) this.#end('ended', () => this.#settle.resolve(task));
    }
  }

  #pause(problem) {
    this.#refused ||= problem !== undefined;
    if (problem || !this.#refused) this.#say(problem ? 'refused' : 'reconnecting', problem);
  }

  async #down(link, waitMs = 0) {
    link.close();
    if (link === this.#probe) {
      this.#probe = null;
      this.#better ||= setTimeout(() => this.#tryBetter(), BETTER_MS);
      return;
    }
    this.#link = null;
    this.#failures++;
    this.#say('reconnecting');
    const { reached, retryAfterMs } = await this.#catchUp();
    if (this.#over || this.#link) return;
    if (!reached) this.#failures = 0;
    if (this.#failures >= FALL_BACK_FAILURES && this.#rung < this.#transports.length - 1) {
      this.#rung++;
      this.#failures = this.#rounds = 0;
      this.#open();
      return;
    }
    this.#again = setTimeout(() => this.#open(), bounded(Math.max(waitMs, retryAfterMs, backoffMs(this.#rounds++))));
  }

  /** Over plain HTTP: what a closed EventSource hides. */
  async #catchUp() {
    let news = false;
    try {
      const { tasks } = await this.#topic.ask(0);
      for (const task of tasks) news = this.#take(task) || news;
      return { reached: true, news, retryAfterMs: 0 };
    } catch (error) {
      if (error instanceof Problem && error.gone) this.#fail(error);
      return { reached: false, news, retryAfterMs: error.retryAfterMs ?? 0 };
    }
  }

  /** Phones end sockets without a word. */
  #wake = async (event) => {
    if (document.visibilityState === 'hidden' || (event.type === 'pageshow' && !event.persisted)) return;
    const stale = event.type !== 'visibilitychange' || !this.#link || Date.now() - this.#heardAt > SILENT_MS_MAX;
    await this.#catchUp();
    if (stale && (!this.#refused || event.persisted)) this.#open();
  };

  /** A stream that is silent while there is news is dead. */
  async #checkSilence() {
    if (!this.#link || !this.#topic.busy || Date.now() - this.#heardAt < WATCH_MS / 2) return;
    const { news } = await this.#catchUp();
    if (news && !this.#refused) this.#open();
  }
}

const meaning = (sink) => ({
  sync: () => sink.live(),
  status: sink.task,
  progress: sink.task,
  position: sink.position,
  refused: sink.pause,
  bye: () => sink.pause(),
});

/** Once it has worked, the browser reconnects by itself, from its own cursor, until it is CLOSED. */
function events(topic, sink) {
  const source = new EventSource(topic.eventsUrl);
  const patience = setTimeout(() => sink.down(), FIRST_EVENT_MS_MAX);
  let worked = false;
  for (const [name, act] of Object.entries(meaning(sink))) {
    source.addEventListener(name, ({ data, lastEventId }) => {
      worked = true;
      clearTimeout(patience);
      act(JSON.parse(data), lastEventId);
    });
  }
  source.onerror = () => (worked && source.readyState === EventSource.CONNECTING ? sink.pause() : sink.down());
  return () => {
    clearTimeout(patience);
    source.close();
  };
}

/** EventSource sends no headers: with a token fetch reads the stream. */
function fetched(topic, sink) {
  let stop = () => {};
  let closed = false;
  const begin = ({ stream }) => {
    if (!closed) stop = stream(topic, sink, meaning(sink));
  };
  import('./stream.js').then(begin).catch(() => sink.down());
  return () => {
    closed = true;
    stop();
  };
}

function socket(topic, sink) {
  const target = topic.server.url('/ws');
  target.protocol = target.protocol.replace('http', 'ws');
  const connection = new WebSocket(target);
  const send = (message) => connection.send(JSON.stringify(message));
  let timer = setTimeout(() => sink.down(), FIRST_EVENT_MS_MAX);
  let againMs = 0;
  const ping = () => {
    send({ type: 'ping' });
    timer = setTimeout(() => sink.down(), FIRST_EVENT_MS_MAX);
  };
  connection.onopen = () => send({ type: 'subscribe', ...topic.subscription });
  connection.onmessage = ({ data }) => {
    clearTimeout(timer);
    timer = setTimeout(ping, PING_MS);
    const message = JSON.parse(data);
    if (message.type === 'subscribed') sink.live();
    else if (message.task) sink.task(message.task, message.cursor);
    else if (message.type === 'position') sink.position(message);
    else if (message.type === 'bye') againMs = message.retryMs;
    else if (message.type === 'refused') {
      const problem = new Problem(message.problem);
      if (problem.gone) sink.gone(problem);
      else sink.down();
    }
  };
  connection.onclose = () => sink.down(againMs);
  return () => {
    clearTimeout(timer);
    connection.close();
  };
}

/** The server holds each answer back until there is news, and says how far apart they are. */
function polling(topic, sink) {
  let abort = new AbortController();
  let timer = 0;
  let closed = false;
  let failures = -1; // not live yet
  const ask = async (wait) => {
    const began = Date.now();
    let againMs;
    abort = new AbortController();
    try {
      const answer = await topic.ask(wait, abort);
      if (failures) sink.live();
      failures = 0;
      for (const task of answer.tasks) sink.task(task);
      againMs = Math.max(POLL_MS_MIN, answer.againMs - (Date.now() - began));
    } catch (error) {
      if (error instanceof Problem && error.gone) return sink.gone(error);
      sink.pause();
      failures = Math.max(1, failures + 1);
      againMs = Math.max(error.retryAfterMs ?? 0, backoffMs(failures));
    }
    if (!closed) timer = setTimeout(ask, bounded(againMs), LONG_POLL_SECONDS);
  };
  ask(0);
  return () => {
    closed = true;
    clearTimeout(timer);
    abort.abort();
  };
}

const POLLING = { via: 'polling', open: polling };
const WEBSOCKET = { via: 'WebSocket', open: socket };
const TRANSPORTS = [{ via: 'EventSource', open: events }, WEBSOCKET, POLLING];
const WITH_TOKEN = [{ via: 'fetch', open: fetched }, POLLING]; // a socket sends no headers

/** What all.js and share.js are made of. @type {any} */
export const parts = { Following, OneTask, Server, WEBSOCKET };
