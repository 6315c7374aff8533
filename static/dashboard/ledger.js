// The ledger of a task as a timeline: what was said of it and verified, by whom, and what became of that. Nobody tells
// of a new entry, so it is read when the task is opened and whenever its status changes.

import { parts } from '../client.js';
import { offset } from './timeline.js';
import { write } from './words.js';

const server = new parts.Server({});
const AGAIN_MS = 5_000;
const KINDS = { callback: 'Callback', webhook: 'Webhook', report: 'Report', lookup: 'Looked up' };
const OUTCOMES = { applied: 'applied', duplicate: 'known already', stale: 'too late' };

export class Ledger {
  #section;
  #of = '';

  /** @param {HTMLElement} section */
  constructor(section) {
    this.#section = section;
  }

  /** @param {{taskId: string, status: string, attempt: number, createdMs: number}} task */
  async show({ taskId, status, attempt, createdMs }) {
    const of = [taskId, status, attempt].join(' ');
    if (of === this.#of) return;
    if (!this.#of.startsWith(`${taskId} `)) this.#section.hidden = true;
    this.#of = of;
    const answer = await server.request('/deliveries', { taskId }).catch(() => null);
    if (of !== this.#of) return;
    if (answer) this.#list(answer.deliveries, createdMs);
    else setTimeout(() => of === this.#of && (this.#of = ''), AGAIN_MS); // then it is read for the next frame
  }

  /** The next one begins anew, also the same. */
  forget() {
    this.#of = '';
    this.#section.hidden = true;
  }

  #list(entries, createdMs) {
    this.#section.hidden = entries.length === 0;
    this.#section.querySelector('.entries').replaceChildren(...entries.map((entry) => item(entry, createdMs)));
  }
}

function item({ at, kind, outcome, delivery, status }, createdMs) {
  const made = document.createElement('li');
  made.dataset.outcome = outcome;
  const time = document.createElement('time');
  const said = [`${KINDS[kind] ?? kind} ${OUTCOMES[outcome] ?? outcome}`, `delivery ${delivery}`];
  if (status !== undefined) said.push(status ? `HTTP ${status}` : 'no answer');
  const words = document.createElement('span');
  write(words, said.join(', '));
  write(time, offset(Date.parse(at) - createdMs));
  time.dateTime = at;
  time.title = new Date(at).toLocaleString();
  made.append(words, time);
  return made;
}
