// The dashboard: one WebSocket brings every change of every task, the board takes it in at once, and what is seen is
// written at most ten times a second, in an animation frame: never a write a message. What is filtered and what is
// open stand in the address.

import { followAllBySocket, vanished } from '../all.js';
import { list } from '../client.js';
import { Connection } from '../connection.js';
import { Removal } from '../removal.js';
import { Session } from '../session.js';
import { Board, TASKS_MAX } from './board.js';
import { LatencyChart, RateChart } from './charts.js';
import { Drawer } from './drawer.js';
import { Table } from './table.js';
import { number, write } from './words.js';

const SHOWN_MS_MIN = 100; // nobody reads faster
const TICK_MS = 1_000; // ages grow and charts move without news
const PAGE = 100;
const TYPING_MS = 500;
const CLOCK_MS_MIN = 2_000; // a clock that is off by less is right

const find = (selector) => /** @type {HTMLElement} */ (document.querySelector(selector));
const board = new Board();
const filters = [...document.querySelectorAll('.counts button')].map((button) => /** @type {HTMLElement} */ (button));
const search = /** @type {HTMLInputElement} */ (find('#search'));
const pause = find('#pause');
const rateChart = new RateChart(find('#rates'));
const latencyChart = new LatencyChart(find('#latency'));
const connection = new Connection(find('#connection'), { WebSocket: 'Live' });
const session = new Session(find('#session'), /** @type {HTMLDialogElement} */ (find('#sign-in')), {
  onEnter: enter,
  onLeave: leave,
});
const table = new Table(find('#tasks'), {
  onOpen: (taskId) => (location.hash = `task=${encodeURIComponent(taskId)}`),
  onTurn: () => show({ forced: true }),
});
const drawer = new Drawer(/** @type {HTMLDialogElement} */ (find('#task')), (id) => board.get(id), {
  onClose: () => {
    if (location.hash) history.pushState(null, '', location.pathname + location.search);
  },
  onDelete: (task) => removal.ask(task),
});
const removal = new Removal(/** @type {HTMLDialogElement} */ (find('#removal')), (taskId) => {
  drawer.closeOf(taskId);
  forget(taskId);
  find('#tasks').focus({ preventScroll: true }); // what had the focus goes
  say('The task was deleted.');
});

let status = '';
let paused = false;
let waiting = false;
let shownAt = 0;
let chartedAt = 0;
let typing = 0;
let loading = false;
let stale = false; // what is being read is from before a break
let whole = false; // every task there is was read
let aheadMs = 0; // of our clock the server's is
let wasLive = false;
let stream = /** @type {?import('../client.js').Handle} */ (null);

const nowMs = () => Date.now() + aheadMs;

/** Something changed: show it in a frame soon, whatever else changes until then. */
function changed() {
  if (waiting || paused) return;
  waiting = true;
  const inMs = Math.max(0, shownAt + SHOWN_MS_MIN - performance.now());
  setTimeout(() => requestAnimationFrame(() => show()), inMs);
}

function wanted() {
  const words = search.value.trim().toLowerCase();
  return (task) => (!status || task.status === status) && (!words || task.words.includes(words));
}

function show({ forced = false } = {}) {
  waiting = false;
  if (paused && !forced) return;
  shownAt = performance.now();
  showCounts();
  if (forced || shownAt - chartedAt > TICK_MS / 2) showCharts();
  table.show(board, wanted(), nowMs(), { forced });
  drawer.show(nowMs());
}

function showCounts() {
  for (const button of filters) {
    const name = button.dataset.status;
    write(button.querySelector('.count'), number(name ? board.counts[name] : board.size));
    button.setAttribute('aria-pressed', String(name === status));
  }
  write(find('#extent'), extent());
}

/** What the figures are of: a page that holds a part must not look as if it held all. */
function extent() {
  if (board.full) return `The newest ${number(TASKS_MAX)} tasks; older ones are not kept in this page.`;
  if (loading) return 'Reading older tasks…';
  if (!stream) return session.isAway ? 'Sign in to see your tasks.' : '';
  return whole ? 'These are all of your tasks.' : 'The newest of your tasks; the older ones could not be read.';
}

function showCharts() {
  chartedAt = performance.now();
  rateChart.show(board.rates, nowMs());
  latencyChart.show(board.rates, nowMs());
}

/** A task is no more, here or wherever it was deleted. */
function forget(taskId) {
  board.delete(taskId);
  removal.settle(taskId);
  drawer.deleted(taskId);
  changed();
}

/**
 * The socket begins with what is open and newest; the list has the rest, until the page holds as much as it may. After a
 * break it also shows what was deleted meanwhile, which nobody tells of.
 */
async function readList() {
  stale = loading;
  if (loading) return;
  loading = true;
  whole = false;
  const known = board.list(() => true, () => 0).map(({ taskId, createdMs }) => ({ taskId, createdAt: createdMs }));
  const listed = [];
  let cursor;
  try {
    do {
      const page = await list({ limit: PAGE, cursor });
      for (const task of page.tasks) {
        board.accept(task);
        listed.push({ taskId: task.taskId, createdAt: task.createdAt });
      }
      cursor = page.cursor;
      changed();
    } while (stream && cursor && listed.length < TASKS_MAX);
    vanished(known, listed, !cursor).forEach(forget);
    whole = !cursor;
    if (cursor) board.settle();
  } catch {
    // The next time the connection comes up it is tried again.
  }
  loading = false;
  changed();
  if (stale && stream) readList();
}

/** Times are the server's: a phone whose clock is wrong must not show its tasks in the future. */
async function compareClocks() {
  const response = await fetch('/healthz', { cache: 'no-store' }).catch(() => null);
  const ahead = Date.parse(response?.headers.get('Date') ?? '') - Date.now();
  if (Math.abs(ahead) > CLOCK_MS_MIN) aheadMs = ahead;
}

/** What a screen reader is told: what one asked for, and whether the connection holds. Never the news itself. */
const say = (text) => write(find('#said'), text);

function filter() {
  table.rewind();
  show({ forced: true });
  const query = new URLSearchParams(Object.entries({ status, q: search.value.trim() }).filter(([, value]) => value));
  history.replaceState(null, '', `${location.pathname}${query.size ? `?${query}` : ''}${location.hash}`);
  clearTimeout(typing);
  typing = setTimeout(() => say(`${number(board.list(wanted(), () => 0).length)} tasks match`), TYPING_MS);
}

for (const button of filters) {
  button.addEventListener('click', () => {
    status = button.dataset.status === status ? '' : button.dataset.status;
    filter();
  });
}
search.addEventListener('input', filter);

pause.addEventListener('click', () => {
  paused = !paused;
  pause.setAttribute('aria-pressed', String(paused));
  document.body.classList.toggle('paused', paused);
  if (!paused) show({ forced: true });
});

document.addEventListener('keydown', (event) => {
  if (event.key !== '/' || event.ctrlKey || event.metaKey || event.target === search) return;
  event.preventDefault();
  search.focus();
});

const route = () => stream && drawer.open(new URLSearchParams(location.hash.slice(1)).get('task') ?? '', nowMs);
addEventListener('hashchange', route);
addEventListener('popstate', route);

const asked = new URLSearchParams(location.search);
status = filters.some((button) => button.dataset.status === asked.get('status')) ? asked.get('status') : '';
search.value = asked.get('q') ?? '';

/** Somebody is there: his tasks are followed from now on. */
function enter() {
  connection.show({ via: 'WebSocket', phase: 'connecting' });
  compareClocks();
  stream = followAllBySocket({
    onUpdate: (task) => {
      board.accept(task);
      changed();
    },
    onDeleted: forget,
    onState: (state) => {
      if (state.phase === 'ended') return; // only of our own closing
      connection.show(state);
      session.hear(state);
      if (state.phase === 'live') {
        if (!wasLive) readList();
        say(wasLive ? '' : 'Connected');
      } else if (wasLive) say('The connection is interrupted; it is being made again.');
      wasLive = state.phase === 'live';
    },
  });
  route();
}

/** Nobody is signed in: nothing is asked until somebody is. */
function leave() {
  stream?.close();
  stream = null;
  wasLive = false;
  drawer.rest();
  connection.leave();
  changed();
}

setInterval(changed, TICK_MS);
show({ forced: true });
