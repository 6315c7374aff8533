// One task in a dialog at the side: its picture, its timeline. While it is open the task is followed on a stream of its
// own, which begins with the replay; it ends with the task or with the dialog.

import { Problem, follow, isTerminal } from '../client.js';
import { removalOf } from '../removal.js';
import { Ledger } from './ledger.js';
import { draw, merge, offset, steps } from './timeline.js';
import { duration, statusOf, write } from './words.js';

export class Drawer {
  #dialog;
  #find;
  #ledger;
  #taskId = '';
  #gone = false;
  /** @type {?import('../client.js').Handle} */
  #replay = null;
  /** @type {import('./board.js').Moment[]} */
  #replayed = [];
  /** @type {?{prompt: string, createdMs: number, version: number}} */
  #task = null;

  /**
   * @param {HTMLDialogElement} dialog
   * @param {(taskId: string) => import('./board.js').Held|undefined} find
   * @param {{onClose: () => void, onDelete: (task: {taskId: string, status: string, prompt: string}) => void}} hooks
   */
  constructor(dialog, find, { onClose, onDelete }) {
    this.#dialog = dialog;
    this.#find = find;
    this.#ledger = new Ledger(dialog.querySelector('.ledger'));
    dialog.querySelector('.delete').addEventListener('click', () => onDelete(this.#newest));
    dialog.addEventListener('close', () => {
      this.rest();
      onClose();
    });
    dialog.addEventListener('click', ({ target }) => target === dialog && dialog.close()); // beside it
    dialog.querySelector('.close').addEventListener('click', () => dialog.close());
    const picture = this.#picture;
    picture.addEventListener('error', () => (picture.hidden = true));
  }

  /** @param {string} taskId none closes it */
  open(taskId, nowMs) {
    if (taskId === this.#taskId) return;
    this.rest();
    if (!taskId) {
      this.#dialog.close();
      return;
    }
    this.#taskId = taskId;
    write(this.#part('.prompt'), '');
    write(this.#part('.missing'), '');
    this.#part('.known').hidden = true;
    this.#replay = follow(taskId, { after: 1, onUpdate: (snapshot) => this.#hear(snapshot, nowMs()) });
    this.#replay.done.catch((error) => {
      if (!(error instanceof Problem) || taskId !== this.#taskId) return;
      const shown = !this.#part('.known').hidden;
      this.#lose(shown ? 'This task was deleted.' : 'There is no such task. It may have been deleted.');
    });
    if (!this.#dialog.open) this.#dialog.showModal();
    this.show(nowMs());
  }

  /** Close it if it is open with this one. */
  closeOf(taskId) {
    if (taskId === this.#taskId) this.open('');
  }

  /** Say so if it is open with this one. */
  deleted(taskId) {
    if (taskId === this.#taskId) this.#lose('This task was deleted.');
  }

  #lose(words) {
    const known = this.#part('.known');
    if (known.contains(document.activeElement)) this.#part('.close').focus();
    this.#gone = true;
    this.#replay.close();
    known.hidden = true;
    write(this.#part('.missing'), words);
  }

  #hear(snapshot, nowMs) {
    const { version, status, attempt, progress, message } = snapshot;
    this.#replayed.push({ version, status, attempt, atMs: Date.parse(snapshot.updatedAt), progress, message });
    this.#task = { ...snapshot, createdMs: Date.parse(snapshot.createdAt) };
    this.show(nowMs);
  }

  /** Nothing is asked any more until it is opened, also with the same task. */
  rest() {
    this.#taskId = '';
    this.#gone = false;
    this.#task = null;
    this.#replayed = [];
    this.#replay?.close();
    this.#replay = null;
    this.#ledger.forget();
  }

  get #newest() {
    const held = this.#find(this.#taskId);
    return /** @type {import('./board.js').Held} */ (
      !held || (this.#task && this.#task.version > held.version) ? this.#task : held
    );
  }

  /** @param {number} nowMs */
  show(nowMs) {
    if (!this.#taskId || this.#gone) return;
    const [task, held] = [this.#newest, this.#find(this.#taskId)];
    if (!task) return;
    this.#part('.known').hidden = false;
    write(this.#part('.missing'), '');
    this.#dialog.dataset.status = task.status;
    write(this.#part('.prompt'), task.prompt);
    const moments = merge(task.createdMs, [...(held?.seen ?? []), ...this.#replayed]);
    write(this.#part('.pill'), statusOf(task));
    const spent = (isTerminal(task) ? moments.at(-1).atMs : nowMs) - task.createdMs;
    write(this.#part('.spent'), `${isTerminal(task) ? 'in' : 'for'} ${duration(spent)}`);
    draw(this.#dialog.querySelector('.timeline'), moments, nowMs);
    this.#list(steps(moments, task), moments[0].atMs);
    write(this.#part('.replaced'), task.attempt > 1 ? 'Earlier failures that a retry replaced are not replayed.' : '');
    this.#show(this.#picture, task);
    this.#ledger.show({ ...task, taskId: this.#taskId });
    write(this.#part('.delete'), removalOf(task));
    /** @type {HTMLAnchorElement} */ (this.#part('.elsewhere')).href = `/#task=${encodeURIComponent(task.taskId)}`;
  }

  #list(told, beginMs) {
    const list = this.#part('.steps');
    while (list.children.length > told.length) list.lastElementChild.remove();
    while (list.children.length < told.length) {
      const item = list.appendChild(document.createElement('li'));
      item.append(document.createElement('span'), document.createElement('time'));
    }
    told.forEach(({ atMs, status, text }, index) => {
      const item = /** @type {HTMLElement} */ (list.children[index]);
      const time = /** @type {HTMLTimeElement} */ (item.lastElementChild);
      item.dataset.status = status;
      write(item.firstElementChild, text);
      write(time, offset(atMs - beginMs));
      time.dateTime = new Date(atMs).toISOString();
      time.title = new Date(atMs).toLocaleString();
    });
  }

  #show(picture, { status, result, prompt }) {
    const url = status === 'completed' && result && /^https?:/.test(new URL(result, location.href).protocol) ? result : '';
    picture.alt = prompt.slice(0, 300);
    if (url === (picture.getAttribute('src') ?? '')) return;
    picture.hidden = !url;
    if (url) picture.src = url;
    else picture.removeAttribute('src');
  }

  /** @returns {HTMLImageElement} */
  get #picture() {
    return this.#dialog.querySelector('.result');
  }

  /** @returns {HTMLElement} */
  #part(selector) {
    return this.#dialog.querySelector(selector);
  }
}
