// Follows tasks from a browser: EventSource, else WebSocket, else polling, each from the same cursor. One file (for
// tokens with stream.js). A transport is given up only when plain HTTP gets through where it does not.

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
    return this.status === 404;
  }
}

/**
 * Follow one task to its end: `done` resolves with the terminal snapshot. It is rejected with a Problem where there is
 * no such task, or no more, with an AbortError after `close()`. `after` is the last version seen.
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
  return new Server(access).request('', {}, { method: 'POST', body: { prompt, params } });
}

/**
 * A page of the caller's tasks, newest first; its `cursor` asks for the next one.
 *
 * @param {{limit?: number, cursor?: string} & Access} [options]
 * @returns {Promise<{tasks: Snapshot[], cursor?: string}>}
 */
export async function list({ limit, cursor, ...access } = {}) {
  return new Server(access).request('', { limit, cursor });
}

/**
 * Delete a task with its log and its picture; a running one is cancelled first.
 *
 * @param {string} taskId
 * @param {Access} [access]
 * @returns {Promise<{taskId: string, outcome: 'deleted'}>}
 */
export async function remove(taskId, access = {}) {
  return new Server(access).request('', { taskId }, { method: 'DELETE' });
}

class Server {
  constructor({ baseUrl = '/', getToken, ticket }) {
    this.root = new URL(baseUrl.replace(/\/?$/, '/'), globalThis.location?.href);
    this.getToken = getToken;
    this.ticket = ticket;
  }

  url(route, query = {}) {
    const made = new URL(`api/generate${route}`, this.root);
    for (const [name, value] of Object.entries(query)) if (value) made.searchParams.set(name, value);
    return made;
  }

  async fetch(target, init) {
    const headers = init.body ? { 'Content-Type': 'application/json' } : {};
    const token = await this.getToken?.();
    if (token) headers.Authorization = `Bearer ${token}`;
    return fetch(target, { ...init, headers, credentials: this.getToken || this.ticket ? 'same-origin' : 'include' });
  }

  async request(route, query, { method, body, abort = new AbortController(), timeoutMs = REQUEST_MS_MAX } = {}) {
    const timer = setTimeout(() => abort.abort(), timeoutMs);
    try {
      const init = { method, body: JSON.stringify(body), signal: abort.signal };
      const response = await this.fetch(this.url(route, query), init);
      if (response.ok) return await response.json();
      const problem = await response.json().catch(() => ({}));
      const retryAfterMs = Number(response.headers.get('Retry-After')) * 1000 || 0;
      throw new Problem({ ...problem, status: response.status }, retryAfterMs);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** @param {{status: string}} task */
export const isTerminal = (task) => task.status === 'completed' || task.status === 'failed';
// a timer of 2^31 ms is none
const bounded = (ms) => Math.min(WAIT_MS_MAX, ms) || BACKOFF_MS_MAX;
const backoffMs = (failures) => Math.min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** failures) * (0.5 + Math.random() / 2);

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
    const query = { taskId: this.taskId, after: this.version, wait };
    const task = await this.server.request('/status', query, { abort, timeoutMs: REQUEST_MS_MAX + wait * 1000 });
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

  constructor(topic, hooks, transports = transportsOf(topic.server)) {
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
    window[how]('pageshow', this.#wake);
    window[how]('online', this.#wake);
  }

  #fail(problem) {
    this.#end('failed', () => this.#settle.reject(problem), problem);
  }

  #say(phase, problem) {
    const { via } = this.#transports[this.#rung];
    const why = problem && { problem: { code: problem.code, detail: problem.message } };
    this.#hooks.onState?.({ via, phase, ...why });
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
    if (this.#rung) this.#better ||= setTimeout(() => this.#tryBetter(), BETTER_MS);
    this.#link = this.#start(this.#rung);
  }

  /** Once closed, nothing a transport says is listened to. */
  #start(rung) {
    const { open: begin } = this.#transports[rung];
    let open = true;
    let stop;
    const close = () => {
      open = false;
      clearTimeout(patience);
      stop?.();
    };
    const link = { close };
    const heard = (act) => (...said) => {
      if (!open || this.#over) return;
      clearTimeout(patience);
      this.#heardAt = Date.now();
      act(...said);
    };
    const sink = {
      live: heard(() => this.#live(link, rung)),
      task: heard(this.#take),
      position: heard((advice) => this.#hooks.onPosition?.(advice)),
      deleted: heard((taskId) => this.#topic.forget?.(taskId)),
      pause: heard((problem) => this.#pause(link, problem)),
      down: heard((waitMs) => this.#down(link, waitMs)),
    };
    const isStream = begin !== polling; // which has a limit of its own, and a header
    const patience = isStream && setTimeout(sink.down, FIRST_EVENT_MS_MAX);
    const connect = async () => {
      const { ticket } = this.#topic.server;
      if (!isStream || !ticket) return (stop = begin(this.#topic, sink));
      this.#failures--; // where none is to be had, that says nothing of the transport
      const shown = await ticket();
      if (!open) return null;
      this.#failures++;
      return (stop = begin(this.#topic, sink, shown));
    };
    connect().catch(() => sink.down()); // no ticket; or there is no such thing here, or a policy forbids it
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
    this.#say('live');
  }

  #tryBetter() {
    this.#better = 0;
    if (this.#rung && !this.#probe) this.#probe = this.#start(0);
  }

  #take = (task, cursor) => {
    if (this.#over) return false;
    try {
      const news = this.#topic.accept(task, cursor);
      if (news) this.#hooks.onUpdate?.(task);
      return news;
    } finally {
      if (this.#topic.ends(task)) this.#end('ended', () => this.#settle.resolve(task));
    }
  };

  #pause(link, problem) {
    if (problem?.gone) this.#fail(problem);
    else if (link === this.#probe) this.#down(link);
    else if (problem || !this.#refused) {
      this.#refused = Boolean(problem);
      this.#say(problem ? 'refused' : 'reconnecting', problem);
    }
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
    const { reached, problem = {} } = await this.#catchUp();
    if (this.#over || this.#link) return;
    const isStranger = problem.status === 401;
    const hasTicket = this.#topic.server.ticket; // which is not for plain HTTP
    if (isStranger && !hasTicket) this.#say('reconnecting', problem);
    if (this.#refused || !(reached || (isStranger && hasTicket))) this.#failures = 0;
    if (this.#failures >= FALL_BACK_FAILURES && this.#transports[this.#rung + 1]) {
      this.#rung++;
      this.#failures = this.#rounds = 0;
      this.#open();
      return;
    }
    const againMs = Math.max(waitMs, problem.retryAfterMs ?? 0, backoffMs(this.#rounds++));
    this.#again = setTimeout(() => this.#open(), bounded(againMs));
  }

  /** Over plain HTTP: what a closed EventSource hides. */
  async #catchUp() {
    let news = false;
    try {
      const { tasks } = await this.#topic.ask(0);
      for (const task of tasks) news = this.#take(task) || news;
      return { news, reached: true };
    } catch (error) {
      if (error.gone) this.#fail(error);
      return { news, problem: error };
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
  deleted: ({ taskId }) => sink.deleted(taskId),
  refused: (body) => sink.pause(new Problem(body)),
  bye: () => sink.pause(),
});

/** Once it has worked, the browser reconnects by itself, from its own cursor, until it is CLOSED: with a spent ticket. */
function events(topic, sink, ticket) {
  const url = topic.eventsUrl;
  if (ticket) url.searchParams.set('ticket', ticket);
  const source = new EventSource(url, { withCredentials: !ticket });
  let goesOn = false;
  for (const [name, act] of Object.entries(meaning(sink))) {
    source.addEventListener(name, ({ data, lastEventId }) => {
      goesOn = !ticket;
      act(JSON.parse(data), lastEventId);
    });
  }
  source.onerror = () => (goesOn && source.readyState !== EventSource.CLOSED ? sink.pause() : sink.down());
  return () => source.close();
}

/** EventSource sends no headers: with a token fetch reads the stream. */
function fetched(topic, sink) {
  let stop;
  let closed = false;
  import('./stream.js')
    .then(({ stream }) => closed || (stop = stream(topic, sink, meaning(sink))))
    .catch(() => sink.down());
  return () => {
    closed = true;
    stop?.();
  };
}

function socket(topic, sink, ticket) {
  const connection = new WebSocket(topic.server.url('/ws', { ticket }).href.replace('http', 'ws'));
  const send = (message) => connection.send(JSON.stringify(message));
  let timer = 0;
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
    else if (message.type === 'deleted') message.taskIds.forEach(sink.deleted);
    else if (message.type === 'bye') againMs = message.retryMs;
    else if (message.type === 'refused') {
      sink.pause(new Problem(message.problem));
      sink.down();
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
  let abort;
  let timer;
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
      sink.pause(error.gone && error);
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

function transportsOf({ getToken, ticket }) {
  if (ticket && !getToken) return TRANSPORTS.slice(0, 2); // polling takes a header
  return ticket || !getToken ? TRANSPORTS : WITH_TOKEN;
}

/** What all.js and share.js are made of. @type {any} */
export const parts = { Following, OneTask, Server, WEBSOCKET };
