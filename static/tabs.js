// One stream for all tabs of the page. Over HTTP/1.1 a browser opens six connections a host, and each stream holds
// one: with a stream a tab the seventh tab would not even load. So the tab that has the lock follows and tells the
// others; when it goes, the next one takes over. A tab in view that hears nothing from it takes the lock away,
// because phones suspend tabs without releasing what they hold. Lock and channel are of one user: two tabs of a browser
// may have been opened by two, and neither may see what is the other's.

import { followAll } from './all.js';

const ASK_MS = 20_000;
const ANSWER_MS_MAX = 3_000;

/** The caller's tasks, as followed by this tab or by another one of his. */
export class SharedStream {
  #name;
  #hooks;
  #closed = new AbortController();
  #channel;
  #stream = null;
  #state = null;
  #turn = new AbortController();
  #silence = 0;

  /** @param {string} userId whose tasks they are @param {import('./types.js').AllOptions} hooks */
  constructor(userId, hooks) {
    this.#name = `taskbeam/${userId}`;
    this.#hooks = hooks;
    if (!navigator.locks || !globalThis.BroadcastChannel) {
      this.#stream = followAll({ ...hooks, onState: (state) => state.phase !== 'ended' && hooks.onState?.(state) });
      return;
    }
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    this.#queue();
    this.#ask();
    const asking = setInterval(() => this.#ask(), ASK_MS);
    const { signal } = this.#closed;
    signal.addEventListener('abort', () => clearInterval(asking));
    document.addEventListener('visibilitychange', () => this.#ask(), { signal });
    addEventListener('pagehide', () => this.#leave(), { signal });
    addEventListener('pageshow', (event) => event.persisted && this.#queue(), { signal });
  }

  /** Nothing is heard or told after it; another tab of the same user takes over. */
  close() {
    this.#closed.abort();
    clearTimeout(this.#silence);
    this.#leave();
    this.#channel?.close();
  }

  /** Wait for the lock and hold it; when another tab takes it away, wait again. */
  async #queue(steal = false) {
    const turn = (this.#turn = new AbortController());
    const options = steal ? { steal } : { signal: turn.signal };
    try {
      await navigator.locks.request(this.#name, options, () => this.#lead(turn.signal));
    } catch {
      // Taken away, or no longer waited for: both are told apart below.
    }
    if (turn !== this.#turn) return;
    this.#stop();
    if (!turn.signal.aborted) this.#queue();
  }

  /** Follow until the lock is to be given back. */
  #lead(signal) {
    if (signal.aborted) return undefined;
    clearTimeout(this.#silence);
    this.#stream = followAll({
      onUpdate: (task) => this.#tell({ task }),
      onDeleted: (deleted) => this.#tell({ deleted }),
      onState: (state) => this.#tell({ state }),
      onPosition: (advice) => this.#tell({ advice }),
    });
    return new Promise((resolve) => signal.addEventListener('abort', resolve));
  }

  #tell(said) {
    if (said.state?.phase === 'ended') return; // only of our own closing
    if (said.state) this.#state = said.state;
    this.#channel.postMessage(said);
    this.#pass(said);
  }

  #pass({ task, deleted, state, advice }) {
    if (task) this.#hooks.onUpdate?.(task);
    if (deleted) this.#hooks.onDeleted?.(deleted);
    if (state) this.#hooks.onState?.(state);
    if (advice) this.#hooks.onPosition?.(advice);
  }

  #stop() {
    const stream = this.#stream;
    this.#stream = null;
    stream?.close();
  }

  #leave() {
    this.#turn.abort();
    this.#stop();
  }

  #ask() {
    if (this.#stream || document.visibilityState === 'hidden') return;
    this.#channel.postMessage({ ask: true });
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#steal(), ANSWER_MS_MAX);
  }

  #steal() {
    if (this.#stream) return;
    this.#turn.abort();
    this.#queue(true);
  }

  #hear(said) {
    if (this.#stream) {
      if (said.ask) this.#channel.postMessage({ state: this.#state });
    } else if (!said.ask) {
      clearTimeout(this.#silence);
      this.#pass(said);
    }
  }
}
