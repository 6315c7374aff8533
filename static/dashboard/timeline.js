// What happened to a task and when, as a drawing and as a list. Changes of status are in the server's log and are
// replayed from version 1 on when a task is opened; the steps between them are not in the log, so of those only what
// this page saw is told, and the page says so.

import { isTerminal } from '../client.js';
import { shape } from './charts.js';
import { duration, statusOf } from './words.js';

const WIDTH = 600;
const HEIGHT = 60;
const TRACK = { y: 40, height: 12 };
const CURVE = 0.32; // of a percent of progress, above the track

/**
 * One order of what was seen and what was replayed, without doubles, from the acceptance on.
 *
 * @param {number} createdMs @param {import('./board.js').Moment[]} moments
 * @returns {import('./board.js').Moment[]}
 */
export function merge(createdMs, moments) {
  const accepted = { version: 1, status: 'pending', attempt: 1, atMs: createdMs, progress: null, message: null };
  const known = new Map([[1, accepted], ...moments.map((moment) => /** @type {const} */ ([moment.version, moment]))]);
  return [...known.values()].sort((a, b) => a.version - b.version);
}

/** Moments with what each is called; progress only where it says something new. */
export function steps(moments, task) {
  const told = [];
  let before = null;
  for (const moment of moments) {
    const text = textOf(moment, before, task);
    if (text) told.push({ atMs: moment.atMs, status: moment.status, text });
    before = moment;
  }
  return told;
}

function textOf(moment, before, task) {
  const { status, attempt, message, progress, version } = moment;
  if (status === 'pending') {
    if (before && attempt === before.attempt) return '';
    return attempt === 1 ? 'Accepted' : `Asked for again, attempt ${attempt}`;
  }
  if (isTerminal(moment)) {
    const own = version === task.version;
    return status === 'failed' && own && task.error ? `${statusOf(task)}: ${task.error}` : statusOf(own ? task : moment);
  }
  if (before?.status !== 'processing') return message ? `Started: ${message}` : 'Started';
  return message && message !== before.message ? `${message}${progress === null ? '' : `, ${progress} %`}` : '';
}

/** The states as stretches of one bar, progress as a line above it. @param {SVGElement} svg */
export function draw(svg, moments, nowMs) {
  const begin = moments[0].atMs;
  const last = moments.at(-1);
  const end = Math.max(begin + 1, isTerminal(last) ? last.atMs : nowMs, last.atMs);
  const x = (atMs) => ((Math.min(Math.max(atMs, begin), end) - begin) / (end - begin)) * WIDTH;
  const parts = stretches(moments, end).map(({ status, fromMs, toMs }) =>
    shape('rect', { class: status, x: x(fromMs), width: Math.max(1, x(toMs) - x(fromMs)), ...TRACK }),
  );
  const known = moments.filter((moment) => moment.status === 'processing' && moment.progress !== null);
  const path = known.map(({ atMs, progress }, n) => `${n ? 'L' : 'M'}${x(atMs)} ${TRACK.y - 5 - progress * CURVE}h.01`);
  parts.push(shape('path', { class: 'curve', d: path.join('') }));
  for (const moment of moments.filter(isTerminal)) {
    const d = `M${x(moment.atMs)} ${TRACK.y - 6}v${TRACK.height + 12}`;
    parts.push(shape('path', { class: `end ${moment.status}`, d }));
  }
  svg.setAttribute('viewBox', `-2 0 ${WIDTH + 4} ${HEIGHT}`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.replaceChildren(...parts);
}

/** Each state until the next one; a terminal one has no length. */
function stretches(moments, endMs) {
  const changes = moments.filter((moment, n) => n === 0 || moment.status !== moments[n - 1].status);
  return changes
    .map(({ status, atMs }, n) => ({ status, fromMs: atMs, toMs: changes[n + 1]?.atMs ?? endMs }))
    .filter(({ status }) => !isTerminal({ status }));
}

/** @param {number} ms since the acceptance */
export const offset = (ms) => (ms <= 0 ? '0 s' : `+${duration(ms)}`);
