// The small line that says how the page is connected.

const SETTLE_MS = 800; // a reconnect that takes less is not worth a flicker
const WORDS = {
  connecting: 'Connecting…',
  reconnecting: 'Reconnecting…',
  refused: 'The server is busy; it will let us in shortly',
  failed: 'Not connected',
  left: 'Not connected',
};
const LIVE = { EventSource: 'Live', WebSocket: 'Live over WebSocket', polling: 'Polling' };

export class Connection {
  #element;
  #live;
  #timer = 0;

  /** @param {HTMLElement} element @param {Object<string, string>} [live] the words for it, by the way it goes */
  constructor(element, live = LIVE) {
    this.#element = element;
    this.#live = live;
  }

  /** @param {import('./types.js').State} state */
  show({ via, phase }) {
    clearTimeout(this.#timer);
    if (phase === 'live') this.#set(via, phase);
    else this.#timer = setTimeout(() => this.#set(via, phase), SETTLE_MS);
  }

  /** Nobody is signed in, so it is not tried. */
  leave() {
    clearTimeout(this.#timer);
    this.#set('', 'left');
  }

  #set(via, phase) {
    this.#element.dataset.via = via;
    this.#element.dataset.phase = phase;
    this.#element.lastElementChild.textContent = phase === 'live' ? this.#live[via] : WORDS[phase];
  }
}
