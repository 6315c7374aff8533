// Asks, and then deletes a task: it cannot be undone. Without a network, nothing goes and the question stays open.

import { Problem, isTerminal, remove } from './client.js';

/** What the button is called that deletes it. @param {{status: string}} task */
export const removalOf = (task) => (isTerminal(task) ? 'Delete' : 'Cancel and delete');

export class Removal {
  #dialog;
  #onDeleted;
  #taskId = '';
  #busy = false;

  /** @param {HTMLDialogElement} dialog @param {(taskId: string) => void} onDeleted also where it was gone already */
  constructor(dialog, onDeleted) {
    this.#dialog = dialog;
    this.#onDeleted = onDeleted;
    this.#part('.keep').addEventListener('click', () => this.#busy || dialog.close());
    this.#part('.sure').addEventListener('click', () => this.#busy || this.#delete());
    dialog.addEventListener('cancel', (event) => this.#busy && event.preventDefault());
    dialog.addEventListener('close', () => (this.#taskId = ''));
  }

  /** @param {{taskId: string, status: string, prompt: string}} task */
  ask(task) {
    this.#taskId = task.taskId;
    this.#part('.problem').textContent = '';
    this.#part('.prompt').textContent = task.prompt.slice(0, 300);
    this.show(task);
    this.#dialog.showModal();
  }

  /** It may end while one thinks. @param {{taskId: string, status: string}} task */
  show(task) {
    if (task.taskId !== this.#taskId) return;
    const [sure, words] = [this.#part('.sure'), this.#part('.words')];
    const first = { completed: 'Its picture goes with it. ', failed: '' }[task.status] ?? 'It is cancelled first. ';
    const said = `${first}This cannot be undone.`;
    if (sure.textContent !== removalOf(task)) sure.textContent = removalOf(task);
    if (words.textContent !== said) words.textContent = said;
  }

  /** There is nothing left to ask about. @param {string} taskId */
  settle(taskId) {
    if (taskId === this.#taskId) this.#dialog.close();
  }

  async #delete() {
    const taskId = this.#taskId;
    this.#wait(true);
    this.#part('.problem').textContent = '';
    const failure = await remove(taskId).then(() => null, (error) => error);
    this.#wait(false);
    if (!failure || failure.gone) {
      this.settle(taskId);
      this.#onDeleted(taskId);
    } else {
      const words = failure instanceof Problem ? failure.message : 'The server cannot be reached. Try again shortly.';
      this.#part('.problem').textContent = words;
    }
  }

  #wait(busy) {
    this.#busy = busy;
    for (const name of ['.keep', '.sure']) this.#part(name).setAttribute('aria-disabled', String(busy));
  }

  /** @returns {HTMLElement} */
  #part(selector) {
    return this.#dialog.querySelector(selector);
  }
}
