// Who is signed in, and the question for an access token where nobody is: it goes to the server once and comes back as a
// cookie that no script can read. Without sign-in none of this is seen.

import { Problem } from './client.js';

const AGAIN_MS_MIN = 31_000; // the server bears a clock that is wrong by half a minute
const AGAIN_MS_MAX = 3_600_000;
const RETRY_MS_MIN = 1_000;
const RETRY_MS_MAX = 30_000;
const ENDING_MS = 60_000; // a cookie that goes so shortly before its token ends went with it, later than that by signing out
const CHANNEL = 'taskbeam/session';
const NOBODY = ['unauthorized', 'access_token_expired', 'invalid_access_token'];
const WORDS = {
  unauthorized: 'Sign in to see your tasks.',
  access_token_expired: 'Your access token has expired. Sign in with a new one.',
  session_ended: 'Your session has ended. Sign in again.',
};
const UNREACHED = 'The server cannot be reached. Try again shortly.';

export class Session {
  #place;
  #dialog;
  #hooks;
  #channel = globalThis.BroadcastChannel ? new BroadcastChannel(CHANNEL) : null;
  #userId = ''; // the last one: it stays while he is asked again
  #endsMs = 0;
  #isHere = false;
  #isAway = false; // neither: the server has not said yet
  #isLocal = false;
  #broken = false; // the stream, which may have come back as another user's
  #looking = null;
  #declined = false; // whoever closes the question is not asked again, but may come back to it
  #failures = 0;
  #timer = 0;

  /**
   * Nothing is to be asked of the server before onEnter, nor after onLeave until the next one.
   *
   * @param {HTMLElement} place in the head of the page @param {HTMLDialogElement} dialog
   * @param {{onEnter: (userId: string) => void, onLeave: () => void}} hooks
   */
  constructor(place, dialog, hooks) {
    this.#place = place;
    this.#dialog = dialog;
    this.#hooks = hooks;
    place.querySelector('.enter').addEventListener('click', () => this.ask());
    place.querySelector('.leave').addEventListener('click', () => this.#leave());
    dialog.querySelector('form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#enter();
    });
    dialog.addEventListener('cancel', () => (this.#declined = true));
    // What another tab did is told at once; a tab that slept, or another app's sign-in, shows when one comes back.
    if (this.#channel) this.#channel.onmessage = ({ data }) => this.#hearOf(data);
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible' && !this.#isLocal) this.check();
    });
    addEventListener('pageshow', ({ persisted }) => persisted && !this.#isLocal && this.check());
    addEventListener('online', () => this.#failures && this.check());
    this.check();
  }

  /** Whether it is known that there is nobody: not before the server has said so. */
  get isAway() {
    return this.#isAway;
  }

  /** Ask for an access token, also who closed the question before. */
  ask() {
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  /** What a stream says of itself may be that its user is not known any more. @param {import('./types.js').State} state */
  hear({ phase, problem }) {
    const code = problem?.code ?? '';
    if (code === 'session_ended') this.#missing({ code }); // though the token is still good
    else if (NOBODY.includes(code) || (phase === 'live' && this.#broken && !this.#isLocal)) this.check();
    this.#broken = phase !== 'live' && (this.#broken || phase === 'reconnecting');
  }

  /** Look who is signed in, and ask where nobody is. */
  check() {
    this.#looking ??= this.#look().finally(() => (this.#looking = null));
    return this.#looking;
  }

  /** Another tab's user left or came; an answer under way may be from before that. */
  async #hearOf(change) {
    if (change === 'left' && this.#userId) this.#reset();
    else {
      await this.#looking;
      this.check();
    }
  }

  async #look() {
    try {
      this.#known(await ask('GET'));
      this.#failures = 0;
    } catch (error) {
      if (error.status === 401) {
        this.#failures = 0;
        this.#missing(error);
      } else {
        this.#checkIn(Math.min(RETRY_MS_MAX, RETRY_MS_MIN * 2 ** this.#failures++) * (0.5 + Math.random() / 2));
      }
    }
  }

  #checkIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.check(), ms);
  }

  #known({ userId, expiresAt, operator }) {
    if (this.#userId && this.#userId !== userId) {
      this.#reset();
      return;
    }
    this.#userId = userId;
    this.#isLocal = expiresAt === null;
    this.#declined = false;
    if (!this.#isLocal) {
      this.#endsMs = Date.parse(expiresAt);
      this.#show(`Signed in as ${userId.slice(0, 8)}…${operator ? ', operator' : ''}`, userId);
      this.#checkIn(Math.min(AGAIN_MS_MAX, Math.max(AGAIN_MS_MIN, this.#endsMs - Date.now() + 1_000)));
    }
    this.#dialog.close();
    if (this.#isHere) return;
    this.#isHere = true;
    this.#isAway = false;
    this.#hooks.onEnter(userId);
  }

  #missing({ code }) {
    clearTimeout(this.#timer);
    const cookieGone = this.#userId && code === 'unauthorized';
    if (cookieGone && Date.now() < this.#endsMs - ENDING_MS) {
      this.#reset();
      return;
    }
    this.#show('Not signed in', '');
    this.#part('.words').textContent = cookieGone ? WORDS.access_token_expired : (WORDS[code] ?? WORDS.unauthorized);
    this.#away();
    if (!this.#declined) this.ask();
  }

  #away() {
    this.#isHere = false;
    this.#isAway = true;
    this.#hooks.onLeave();
  }

  /** Nothing of a user who has left may stay: what is shown and typed goes with the page, his task with the address. */
  #reset() {
    this.#away();
    location.replace(location.pathname);
  }

  #show(words, userId) {
    const who = this.#place.querySelector('.who');
    who.textContent = words;
    who.setAttribute('title', userId);
    this.#place.querySelector('.enter').toggleAttribute('hidden', Boolean(userId));
    this.#place.querySelector('.leave').toggleAttribute('hidden', !userId);
    this.#place.hidden = false;
  }

  async #enter() {
    const field = /** @type {HTMLInputElement} */ (this.#part('input'));
    const problem = this.#part('.problem');
    problem.textContent = '';
    try {
      const session = await ask('POST', { token: field.value.trim().replace(/^Bearer\s+/i, '') });
      field.value = '';
      this.#channel?.postMessage('entered');
      this.#known(session);
    } catch (error) {
      problem.textContent = error instanceof Problem ? error.message : UNREACHED;
    }
  }

  async #leave() {
    try {
      await ask('DELETE');
      this.#known(await ask('GET'));
      this.#place.querySelector('.who').textContent = 'Signed in by your app: sign out there';
      this.#place.querySelector('.leave').toggleAttribute('hidden', true);
    } catch (error) {
      if (error instanceof Problem) {
        this.#channel?.postMessage('left');
        this.#reset();
      } else this.#place.querySelector('.who').textContent = UNREACHED;
    }
  }

  /** @returns {HTMLElement} */
  #part(selector) {
    return this.#dialog.querySelector(selector);
  }
}

/** Raises a Problem, and TypeError where the server is not reached. */
async function ask(method, body) {
  const headers = body && { 'Content-Type': 'application/json' };
  const response = await fetch('/api/session', { method, body: JSON.stringify(body), headers, cache: 'no-store' });
  const said = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem({ ...said, status: response.status });
  return said;
}
