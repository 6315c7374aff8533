// Wires the page together: what is typed becomes a task, what the stream says becomes what is seen. The task in
// view stands in the address (#task=…), so that a reload, a second tab and the back button show the same one.

import { vanished } from './all.js';
import { Problem, follow, generate, list } from './client.js';
import { Connection } from './connection.js';
import { Recent } from './recent.js';
import { Removal } from './removal.js';
import { Session } from './session.js';
import { SharedStream } from './tabs.js';
import { TASKS_MAX, Tasks, isOpen } from './tasks.js';
import { View } from './view.js';

const PAGE = 24;
const AWAY_MS = 20_000;

const tasks = new Tasks();
const composer = /** @type {HTMLFormElement} */ (document.querySelector('#composer'));
const prompt = /** @type {HTMLTextAreaElement} */ (document.querySelector('#prompt'));
const submit = composer.querySelector('button');
const problem = document.querySelector('#prompt-error');
const connection = new Connection(document.querySelector('#connection'));
const session = new Session(document.querySelector('#session'), document.querySelector('#sign-in'), {
  onEnter: enter,
  onLeave: leave,
});
const view = new View(document.querySelector('#frame'), document.querySelector('#task'), {
  onAgain: again,
  onDelete: () => removal.ask(tasks.get(inView())),
});
const removal = new Removal(document.querySelector('#removal'), forget);
const recent = new Recent(document.querySelector('#recent'), showMore);

let shown = PAGE;
let cursor = /** @type {string|undefined} */ (undefined);
let loaded = false;
let unreached = false; // what is said of the last prompt is no longer so once the stream is live
let loading = /** @type {?Promise<void>} */ (null);
let away = 0;
let stream = /** @type {?SharedStream} */ (null);
/** A task in view that the stream does not bring, because it is older than what the list begins with. */
let strayed = /** @type {?import('./client.js').Handle} */ (null);

const inView = () => new URLSearchParams(location.hash.slice(1)).get('task');

/** @param {import('./client.js').Snapshot} task */
function accept(task) {
  if (!tasks.accept(task)) return;
  if (task.taskId === inView()) showTask(task);
  showRecent();
}

/** A task is no more: it was deleted, by whomever. */
function forget(taskId) {
  tasks.delete(taskId);
  removal.settle(taskId);
  if (taskId !== inView()) showRecent();
  else {
    history.replaceState(null, '', location.pathname + location.search);
    route();
    view.clear('The task was deleted.');
  }
}

function showTask(task) {
  view.show(task);
  removal.show(task);
  const words = task.prompt.slice(0, 60);
  const lead = { pending: '…', processing: `${task.progress ?? 0} %`, completed: '✓', failed: '✗' }[task.status];
  document.title = `${lead} ${words}`;
}

function showRecent() {
  const hasMore = shown < TASKS_MAX && (cursor !== undefined || tasks.size > shown);
  recent.show(tasks.newest(shown), inView(), hasMore);
}

/** Show what the address names; what is not known yet is followed until it is. */
function route() {
  strayed?.close();
  strayed = null;
  const taskId = inView();
  const task = taskId && tasks.get(taskId);
  if (task) showTask(task);
  else {
    document.title = 'Taskbeam';
    if (taskId) find(taskId);
    else view.clear();
  }
  showRecent();
}

function find(taskId) {
  if (session.isAway) {
    view.clear();
    return;
  }
  view.loading();
  if (!loaded) return;
  strayed = follow(taskId, { onUpdate: accept });
  strayed.done.catch((error) => {
    if (error instanceof Problem && taskId === inView()) view.missing();
  });
}

/** The first page of the list: what the stream says comes on top of it. What is missing there is no more. */
async function refresh() {
  if (!stream) return;
  const known = tasks.newest(TASKS_MAX);
  try {
    const page = await list({ limit: PAGE });
    vanished(known, page.tasks, !page.cursor).forEach(forget);
    if (!loaded) cursor = page.cursor;
    loaded = true;
    page.tasks.reverse().forEach(accept);
  } catch {
    // The stream brings the newest tasks as well, and says that it is reconnecting while it cannot.
  }
}

/** What the address names is looked for once the list is there; two answers must not look for it twice. */
function load() {
  loading ??= refresh()
    .then(route)
    .finally(() => (loading = null));
}

async function showMore() {
  shown = Math.min(shown + PAGE, TASKS_MAX);
  while (cursor !== undefined && tasks.size < shown) {
    const page = await list({ limit: PAGE, cursor }).catch(() => null);
    if (!page) break;
    cursor = page.cursor;
    page.tasks.forEach((task) => tasks.accept(task));
  }
  showRecent();
}

/** @param {string} words @param {Object<string, unknown>} [params] */
async function begin(words, params) {
  if (submit.getAttribute('aria-disabled') === 'true') return;
  if (session.isAway) {
    session.ask();
    return;
  }
  submit.setAttribute('aria-disabled', 'true');
  problem.textContent = '';
  try {
    const { taskId } = await generate(words, params);
    accept(justAccepted(taskId, words, params));
    location.hash = `task=${taskId}`;
  } catch (error) {
    unreached = !(error instanceof Problem);
    if (error.status === 401) session.check(); // which asks, and what was typed stays
    else problem.textContent = unreached ? 'The server cannot be reached. Try again shortly.' : error.message;
  } finally {
    submit.removeAttribute('aria-disabled');
  }
}

/** What is shown until the first word of the stream: a version below all others. */
function justAccepted(taskId, words, params = {}) {
  const now = new Date().toISOString();
  const unknown = { result: null, error: null, errorCode: null, progress: null, message: null, preview: null };
  const advice = { step: null, steps: null, batchId: null, queuePosition: null, etaMs: null, pollAfterMs: null };
  const begun = { version: 0, statusVersion: 0, attempt: 1, cancelled: false, createdAt: now, updatedAt: now };
  return { taskId, status: /** @type {const} */ ('pending'), prompt: words, params, ...unknown, ...advice, ...begun };
}

function again() {
  const task = tasks.get(inView() ?? '');
  if (task) begin(task.prompt, task.params);
}

composer.addEventListener('submit', (event) => {
  event.preventDefault();
  if (prompt.value.trim()) begin(prompt.value.trim());
  else {
    problem.textContent = 'Say what the picture is to show.';
    prompt.focus();
  }
});

prompt.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !event.isComposing) composer.requestSubmit();
});

document.querySelector('.examples').addEventListener('click', ({ target }) => {
  if (!(target instanceof HTMLButtonElement)) return;
  prompt.value = target.textContent;
  prompt.focus();
});

document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'hidden') away = Date.now();
  else if (Date.now() - away > AWAY_MS) refresh();
});

addEventListener('hashchange', route);
if (/Mac|iP(hone|ad)/.test(navigator.platform)) document.querySelector('#modifier').textContent = '⌘';

/** @param {string} userId whose tasks are followed from now on */
function enter(userId) {
  connection.show({ via: 'EventSource', phase: 'connecting' });
  stream = new SharedStream(userId, {
    onUpdate: accept,
    onDeleted: forget,
    onState: (state) => {
      connection.show(state);
      session.hear(state);
      if (state.phase === 'live' && unreached) problem.textContent = '';
      if (state.phase === 'live' && !loaded) load();
    },
    onPosition: (advice) => {
      tasks.advise(advice);
      const task = tasks.get(advice.taskId);
      if (isOpen(task) && task.taskId === inView()) view.show(task);
    },
  });
  load();
}

/** Nobody is signed in: nothing is asked until somebody is. */
function leave() {
  stream?.close();
  strayed?.close();
  stream = strayed = null;
  connection.leave();
  route();
}

route();
