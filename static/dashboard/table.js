// The list as a table of ROWS rows, whose elements are made once: a redraw writes the texts that changed and nothing
// else. While the pointer or the focus is in it, or one of its tasks is open, the order rests, so that no row slips
// away from under a click and the focus comes back to where it was; what the rows say goes on changing.

import { isTerminal } from '../client.js';
import { tookMs } from './board.js';
import { ago, duration, number, statusOf, write } from './words.js';

export const ROWS = 50;
const TURN = { ascending: 1, descending: -1 };
const RANK = { processing: 0, pending: 1, failed: 2, completed: 3 };
const ORDERS = {
  status: (a, b) => RANK[a.status] - RANK[b.status],
  created: (a, b) => a.createdMs - b.createdMs,
  took: (a, b, nowMs) => tookMs(a, nowMs) - tookMs(b, nowMs),
};

export class Table {
  #element;
  #rows;
  #sort = { by: 'created', direction: 'descending' };
  #first = 0;
  #resting;

  /** @param {HTMLElement} element @param {{onOpen: (taskId: string) => void, onTurn: () => void}} hooks */
  constructor(element, { onOpen, onTurn }) {
    this.#element = element;
    const body = element.querySelector('tbody');
    this.#rows = Array.from({ length: ROWS }, () => new Row(body, onOpen));
    const hovering = matchMedia('(hover: hover)');
    this.#resting = () =>
      body.matches(':focus-within') ||
      (hovering.matches && body.matches(':hover')) ||
      document.querySelector('dialog[open]') !== null;
    for (const head of element.querySelectorAll('th[data-by]')) {
      head.querySelector('button').addEventListener('click', () => {
        this.#order(/** @type {HTMLElement} */ (head).dataset.by);
        onTurn();
      });
    }
    for (const [selector, step] of /** @type {const} */ ([['.newer', -ROWS], ['.older', ROWS]])) {
      element.querySelector(selector).addEventListener('click', () => {
        this.#first += step;
        onTurn();
      });
    }
  }

  get order() {
    return { by: this.#sort.by, turn: TURN[this.#sort.direction], compare: ORDERS[this.#sort.by] };
  }

  /** Back to the first page: other tasks are asked for. */
  rewind() {
    this.#first = 0;
  }

  #order(by) {
    const again = this.#sort.by === by;
    const other = this.#sort.direction === 'descending' ? 'ascending' : 'descending';
    this.#sort = { by, direction: again ? other : by === 'status' ? 'ascending' : 'descending' };
    this.#first = 0;
    for (const head of this.#element.querySelectorAll('th[data-by]')) {
      if (/** @type {HTMLElement} */ (head).dataset.by === by) head.setAttribute('aria-sort', this.#sort.direction);
      else head.removeAttribute('aria-sort');
    }
  }

  /** @param {import('./board.js').Board} board @param {(task: import('./board.js').Held) => boolean} wanted */
  show(board, wanted, nowMs, { forced = false } = {}) {
    if (!forced && this.#resting()) {
      for (const row of this.#rows) row.show(board.get(row.taskId) ?? row.task, nowMs, board.gone.has(row.taskId));
      return;
    }
    const { compare, turn } = this.order;
    const tasks = board.list(wanted, (a, b) => turn * compare(a, b, nowMs));
    this.#first = Math.max(0, Math.min(this.#first, Math.floor((tasks.length - 1) / ROWS) * ROWS));
    this.#rows.forEach((row, index) => row.show(tasks[this.#first + index], nowMs));
    this.#page(tasks.length);
  }

  #page(count) {
    const last = Math.min(this.#first + ROWS, count);
    const range = `${number(this.#first + 1)}–${number(last)} of ${number(count)}`;
    write(this.#element.querySelector('.range'), count ? range : '');
    /** @type {HTMLElement} */ (this.#element.querySelector('.nothing')).hidden = count > 0;
    const [newer, older] = [this.#button('.newer'), this.#button('.older')];
    newer.disabled = this.#first === 0;
    older.disabled = last >= count;
    newer.hidden = older.hidden = count <= ROWS;
  }

  /** @returns {HTMLButtonElement} */
  #button(selector) {
    return this.#element.querySelector(selector);
  }
}

class Row {
  /** @type {import('./board.js').Held|undefined} */
  task;
  gone = false;

  constructor(body, onOpen) {
    this.element = body.insertRow();
    this.element.hidden = true;
    const cell = (name) => Object.assign(this.element.insertCell(), { className: name });
    const part = (parent, name, className) => parent.appendChild(Object.assign(document.createElement(name), { className }));
    this.open = part(cell('prompt'), 'button', 'open');
    this.open.type = 'button';
    this.status = part(cell('status'), 'span', 'pill');
    const progress = cell('progress-cell');
    this.percent = part(progress, 'span', 'percent');
    this.track = part(progress, 'span', 'track');
    this.bar = part(this.track, 'span', 'bar');
    this.created = cell('created');
    this.took = cell('took');
    this.open.addEventListener('click', () => onOpen(this.taskId));
  }

  get taskId() {
    return this.task?.taskId ?? '';
  }

  /** A task that is gone is still shown where the order rests: what lies below must not move up under the pointer. */
  show(task, nowMs, gone = false) {
    const [before, other] = [this.task, this.task?.taskId !== task?.taskId];
    const same = before === task && gone === this.gone;
    this.task = task;
    this.gone = gone;
    this.element.hidden = !task;
    if (!task || (same && gone)) return;
    write(this.created, ago(nowMs - task.createdMs));
    write(this.took, duration(tookMs(task, nowMs)));
    if (same) return;
    write(this.open, task.prompt.slice(0, 160));
    this.open.disabled = gone;
    this.element.classList.toggle('gone', gone);
    this.element.dataset.status = task.status;
    write(this.status, gone ? 'Deleted' : statusOf(task) + (task.attempt > 1 ? ` · attempt ${task.attempt}` : ''));
    const known = task.progress !== null && !isTerminal(task) && !gone;
    write(this.percent, known ? `${task.progress} %` : '');
    this.track.hidden = !known;
    this.track.classList.toggle('still', other); // no glide from one task's progress to another's
    this.bar.style.transform = `scaleX(${(task.progress ?? 0) / 100})`;
  }
}
