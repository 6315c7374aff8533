// The task in view: its picture, its progress, what it says. Shows one snapshot at a time and keeps none.

import { removalOf } from './removal.js';
import { isOpen } from './tasks.js';

/** @typedef {import('./client.js').Snapshot} Snapshot */

/** A result may come from any generator: only addresses that a picture can have become links. */
function pictureUrl(result) {
  const url = new URL(result, location.href);
  return url.protocol === 'https:' || url.protocol === 'http:' ? url.href : '';
}

/** What a task says of itself, in words that change with its stage and not with each percent. @param {Snapshot} task */
function stageOf(task) {
  if (task.status === 'completed') return `Finished in ${duration(task)}`;
  if (task.cancelled) return 'Cancelled';
  if (task.status === 'failed') return task.error ?? 'It did not work out';
  if (task.status === 'processing') return task.message ?? 'Working on it';
  return task.queuePosition ? `Waiting, ${task.queuePosition} before it` : 'Waiting for its turn';
}

function duration({ createdAt, updatedAt }) {
  const seconds = Math.max(0, Date.parse(updatedAt) - Date.parse(createdAt)) / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

export class View {
  #frame;
  #panel;

  /** @param {HTMLElement} frame @param {HTMLElement} panel @param {{onAgain: () => void, onDelete: () => void}} hooks */
  constructor(frame, panel, { onAgain, onDelete }) {
    this.#frame = frame;
    this.#panel = panel;
    this.#part('.again').addEventListener('click', onAgain);
    this.#part('.delete').addEventListener('click', onDelete);
    const picture = this.#picture;
    picture.addEventListener('load', () => (frame.dataset.loaded = 'true'));
    picture.addEventListener('error', () => {
      picture.hidden = true;
      this.#placeholder('The picture cannot be shown');
    });
  }

  /** @param {Snapshot} task */
  show(task) {
    this.#state(task.status);
    this.#text('.prompt', task.prompt);
    this.#text('.stage', stageOf(task));
    this.#showProgress(task);
    this.#showPicture(task);
    const again = this.#part('.again');
    if (document.activeElement === again && task.status !== 'failed') this.#panel.focus({ preventScroll: true });
    again.hidden = task.status !== 'failed';
    this.#part('.delete').hidden = false;
    this.#text('.delete', removalOf(task));
  }

  /** Nothing is in view. @param {string} [why] */
  clear(why = '') {
    this.#blank('empty', why, 'Your picture appears here');
  }

  loading() {
    this.#blank('loading', '', '');
  }

  missing() {
    this.#blank('missing', 'There is no such task. It may have been deleted.', 'Nothing here');
  }

  get #picture() {
    return /** @type {HTMLImageElement} */ (this.#frame.querySelector('.picture'));
  }

  #part(selector) {
    return /** @type {HTMLElement} */ (this.#panel.querySelector(selector));
  }

  /** A live region is read again whenever it is written, so it is written only when it changes. */
  #text(selector, text) {
    const part = this.#part(selector);
    if (part.textContent !== text) part.textContent = text;
  }

  #placeholder(text) {
    this.#frame.querySelector('.placeholder').textContent = text;
  }

  #state(state) {
    this.#frame.dataset.state = this.#panel.dataset.state = state;
  }

  #blank(state, stage, placeholder) {
    if (this.#part('.actions').contains(document.activeElement)) this.#panel.focus({ preventScroll: true });
    this.#state(state);
    this.#text('.prompt', '');
    this.#text('.stage', stage);
    this.#text('.percent', '');
    for (const selector of ['.progress', '.again', '.download', '.delete']) this.#part(selector).hidden = true;
    this.#setImage(this.#picture, '');
    this.#setImage(this.#frame.querySelector('.preview'), '');
    this.#placeholder(placeholder);
  }

  #showProgress({ status, progress, step, steps }) {
    const bar = this.#part('.progress');
    const open = isOpen(/** @type {Snapshot} */ ({ status }));
    bar.hidden = !open;
    const known = open && progress !== null;
    if (known) bar.setAttribute('aria-valuenow', String(progress));
    else bar.removeAttribute('aria-valuenow');
    /** @type {HTMLElement} */ (bar.firstElementChild).style.transform = known ? `scaleX(${progress / 100})` : '';
    this.#text('.percent', known ? `${progress} %` : '');
    this.#part('.percent').title = known && steps ? `Step ${step ?? 0} of ${steps}` : '';
  }

  #showPicture({ status, result, preview, prompt }) {
    const url = status === 'completed' && result ? pictureUrl(result) : '';
    this.#setImage(this.#picture, url);
    this.#picture.alt = prompt;
    this.#setImage(this.#frame.querySelector('.preview'), (status !== 'failed' && preview) || '');
    this.#placeholder(status === 'failed' ? 'No picture this time' : '');
    const download = /** @type {HTMLAnchorElement} */ (this.#part('.download'));
    download.hidden = !url;
    if (url) download.href = url;
  }

  #setImage(image, source) {
    if (image.getAttribute('src') === source || (!source && image.hidden)) return;
    if (image === this.#picture) delete this.#frame.dataset.loaded;
    image.hidden = !source;
    if (source) image.src = source;
    else image.removeAttribute('src');
  }
}
