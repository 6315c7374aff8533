// Who is signed in, and the question for an access token where nobody is: it goes to the server once and comes back as a
// cookie that no script can read. Without sign-in none of this is seen.

import { Problem } from './client.js';

const AGAIN_MS_MIN = 31_000; // the server bears a clock that is wrong by half a minute
const AGAIN_MS_MAX = 3_600_000;
const WORDS = {
  unauthorized: 'Sign in to see your tasks.',
  access_token_expired: 'Your access token has expired. Sign in with a new one.',
  session_ended: 'Your session has ended. Sign in again.',
};
const UNREACHED = 'The server cannot be reached. Try again shortly.';

export class Session {
  #place;
  #dialog;
  #userId = '';
  #looking = null;
  #declined = false; // whoever closes the question is not asked again, but may come back to it
  #timer = 0;

  /** @param {HTMLElement} place in the head of the page @param {HTMLDialogElement} dialog */
  constructor(place, dialog) {
    this.#place = place;
    this.#dialog = dialog;
    place.querySelector('.enter').addEventListener('click', () => dialog.showModal());
    place.querySelector('.leave').addEventListener('click', () => this.#leave());
    dialog.querySelector('form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#enter();
    });
    dialog.addEventListener('cancel', () => (this.#declined = true));
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible' && dialog.open) this.check(); // signed in in another tab, perhaps
    });
    this.check();
  }

  /** What a stream says of itself may be that its user is not known any more. @param {import('./types.js').State} state */
  hear({ problem }) {
    const code = problem?.code ?? '';
    if (code === 'session_ended') this.#missing({ code }); // though the token is still good
    else if (['unauthorized', 'access_token_expired', 'invalid_access_token'].includes(code)) this.check();
  }

  /** Look who is signed in, and ask where nobody is. */
  check() {
    this.#looking ??= this.#look().finally(() => (this.#looking = null));
    return this.#looking;
  }

  async #look() {
    try {
      this.#known(await ask('GET'));
      if (this.#dialog.open) this.#resume();
    } catch (error) {
      if (error.status === 401) this.#missing(error);
    }
  }

  #known({ userId, expiresAt, operator }) {
    if (expiresAt === null) return; // the local user
    if (this.#userId && this.#userId !== userId) location.reload(); // nothing of another user's may stay
    this.#userId = userId;
    this.#declined = false;
    this.#show(`Signed in as ${userId.slice(0, 8)}…${operator ? ', operator' : ''}`, userId);
    const leftMs = Date.parse(expiresAt) - Date.now() + 1_000;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.check(), Math.min(AGAIN_MS_MAX, Math.max(AGAIN_MS_MIN, leftMs)));
  }

  #missing({ code }) {
    const ended = this.#userId && code === 'unauthorized'; // the cookie goes with its token
    this.#show('Not signed in', '');
    this.#part('.words').textContent = ended ? WORDS.access_token_expired : (WORDS[code] ?? WORDS.unauthorized);
    if (!this.#dialog.open && !this.#declined) this.#dialog.showModal();
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
      const session = await ask('POST', { token: field.value.trim() });
      field.value = '';
      if (!this.#userId) {
        location.reload();
        return;
      }
      this.#known(session);
      this.#resume();
    } catch (error) {
      problem.textContent = error instanceof Problem ? error.message : UNREACHED;
    }
  }

  /** What he was at is still there, and what follows his tasks need not wait. */
  #resume() {
    this.#dialog.close();
    dispatchEvent(new Event('online'));
  }

  async #leave() {
    try {
      await ask('DELETE');
      await ask('GET');
      this.#place.querySelector('.who').textContent = 'Signed in by your app: sign out there';
      this.#place.querySelector('.leave').toggleAttribute('hidden', true);
    } catch (error) {
      if (error instanceof Problem) location.reload();
      else this.#place.querySelector('.who').textContent = UNREACHED;
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
