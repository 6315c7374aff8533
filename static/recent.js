// The recent tasks as a grid of thumbnails, each a link to its task. Keeps an element a task and changes what changed.

import { isOpen } from './tasks.js';

/** @typedef {import('./client.js').Snapshot} Snapshot */

const STATUS = { pending: 'waiting', processing: 'in progress', completed: 'finished', failed: 'failed' };

function element(name, className) {
  const made = document.createElement(name);
  made.className = className;
  return made;
}

export class Recent {
  #section;
  #grid;
  /** @type {Map<string, Tile>} */
  #tiles = new Map();

  /** @param {HTMLElement} section @param {() => void} onMore */
  constructor(section, onMore) {
    this.#section = section;
    this.#grid = section.querySelector('.grid');
    this.#more.addEventListener('click', onMore);
  }

  get #more() {
    return /** @type {HTMLButtonElement} */ (this.#section.querySelector('.more'));
  }

  /** @param {Snapshot[]} tasks newest first @param {?string} inView @param {boolean} hasMore */
  show(tasks, inView, hasMore) {
    this.#section.hidden = tasks.length === 0;
    this.#more.hidden = !hasMore;
    const shown = new Set(tasks.map((task) => task.taskId));
    for (const [taskId, tile] of this.#tiles) {
      if (shown.has(taskId)) continue;
      tile.item.remove();
      this.#tiles.delete(taskId);
    }
    tasks.forEach((task, index) => {
      const tile = this.#tiles.get(task.taskId) ?? new Tile(task);
      this.#tiles.set(task.taskId, tile);
      if (this.#grid.children[index] !== tile.item) this.#grid.insertBefore(tile.item, this.#grid.children[index] ?? null);
      tile.show(task, task.taskId === inView);
    });
  }
}

class Tile {
  #version = 0;

  /** @param {Snapshot} task */
  constructor(task) {
    this.item = document.createElement('li');
    this.link = /** @type {HTMLAnchorElement} */ (element('a', 'tile'));
    this.link.href = `#task=${task.taskId}`;
    this.link.title = task.prompt.slice(0, 300);
    this.image = document.createElement('img');
    Object.assign(this.image, { loading: 'lazy', decoding: 'async', width: 160, height: 160, alt: task.prompt });
    this.words = element('span', 'words');
    this.words.textContent = task.prompt.slice(0, 120);
    this.bar = element('span', 'bar');
    this.status = element('span', 'unseen');
    this.link.append(this.image, this.words, this.bar, this.status);
    this.item.append(this.link);
    this.image.addEventListener('error', () => (this.image.hidden = true));
  }

  /** @param {Snapshot} task @param {boolean} inView */
  show(task, inView) {
    if (inView) this.link.setAttribute('aria-current', 'true');
    else this.link.removeAttribute('aria-current');
    if (task.version === this.#version) return;
    this.#version = task.version;
    const source = (task.status === 'completed' && task.result) || (isOpen(task) && task.preview) || '';
    this.link.dataset.status = task.status;
    this.image.hidden = !source;
    this.words.hidden = Boolean(source); // the alternative text of the picture says the same
    if (source && this.image.getAttribute('src') !== source) this.image.src = source;
    this.bar.hidden = !isOpen(task);
    this.bar.style.transform = `scaleX(${(task.progress ?? 0) / 100})`;
    this.status.textContent = STATUS[task.status];
  }
}
