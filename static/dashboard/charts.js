// The two charts, drawn by hand: a path a series, so that a redraw writes a handful of attributes. The figures beside
// them say in words what the lines show; to a screen reader those are the chart.

import { SLOTS, SLOT_MS, percentile } from './rates.js';
import { duration, number, write } from './words.js';

const WIDTH = 600;
const HEIGHT = 120;
const STEP = WIDTH / SLOTS;
const GAP = 2;
const A_MINUTE = 60_000 / SLOT_MS;

/** 1, 2 or 5 times a power of ten, not below the value. */
export function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= value);
}

/** An SVG element. @param {string} name @param {Object<string, string|number>} attributes */
export function shape(name, attributes) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

/** @param {(?number)[]} values from 0 to 1 */
function line(values) {
  let path = '';
  values.forEach((value, index) => {
    if (value === null) return;
    const point = `${((index + 0.5) * STEP).toFixed(1)} ${(HEIGHT * (1 - value)).toFixed(1)}`;
    // A point without neighbours has no length; with round ends it is a dot.
    path += index && values[index - 1] !== null ? `L${point}` : `M${point}h.01`;
  });
  return path;
}

/** Bars from one height to another. @param {number[]} from @param {number[]} to both from 0 to 1 */
function bars(from, to) {
  return to
    .map((top, index) => {
      if (top <= from[index]) return '';
      const [y, height] = [HEIGHT * (1 - top), HEIGHT * (top - from[index])];
      return `M${index * STEP + GAP / 2} ${y.toFixed(1)}h${STEP - GAP}v${height.toFixed(1)}h${GAP - STEP}z`;
    })
    .join('');
}

class Chart {
  /** @param {HTMLElement} figure @param {string[]} series the class of each, in the order they are painted */
  constructor(figure, series) {
    this.figure = figure;
    const svg = figure.querySelector('svg');
    svg.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute('preserveAspectRatio', 'none');
    svg.append(shape('path', { class: 'ruled', d: `M0 ${HEIGHT / 2}h${WIDTH}M0 .5h${WIDTH}` }));
    this.paths = Object.fromEntries(series.map((name) => [name, svg.appendChild(shape('path', { class: name }))]));
  }

  draw(paths) {
    for (const [name, d] of Object.entries(paths)) {
      if (this.paths[name].getAttribute('d') !== d) this.paths[name].setAttribute('d', d);
    }
  }

  figures(texts) {
    for (const [name, text] of Object.entries(texts)) write(this.figure.querySelector(`[data-figure=${name}]`), text);
  }
}

/** Tasks created (line), finished and failed (bars) a minute. */
export class RateChart extends Chart {
  constructor(figure) {
    super(figure, ['completed', 'failed', 'created']);
  }

  /** @param {import('./rates.js').Rates} rates @param {number} nowMs */
  show(rates, nowMs) {
    const slots = rates.slots(nowMs);
    const top = ceiling(Math.max(2, ...slots.flatMap((s) => [s.created, s.completed + s.failed])) * A_MINUTE);
    const share = (count) => (count * A_MINUTE) / top;
    const completed = slots.map((slot) => share(slot.completed));
    const ended = slots.map((slot) => share(slot.completed + slot.failed));
    this.draw({
      completed: bars(slots.map(() => 0), completed),
      failed: bars(completed, ended),
      created: line(slots.slice(0, -1).map((slot) => share(slot.created))), // the last one is not over: it would dip
    });
    const minute = rates.lastMinute(nowMs);
    this.figures({
      created: number(minute.created), completed: number(minute.completed), failed: number(minute.failed),
      top: `${number(top)} a minute`,
    });
  }
}

/** How long tasks took from creation to completion: the median, and what 95 in 100 stay below. */
export class LatencyChart extends Chart {
  constructor(figure) {
    super(figure, ['p95', 'p50']);
  }

  /** @param {import('./rates.js').Rates} rates @param {number} nowMs */
  show(rates, nowMs) {
    const slots = rates.slots(nowMs);
    // Of the minute up to each slot: the 95th percentile of the few that end in ten seconds is whichever was slowest.
    const minutes = slots.map((_, index) => slots.slice(Math.max(0, index + 1 - A_MINUTE), index + 1));
    const [p50, p95] = [0.5, 0.95].map((share) => minutes.map((minute) => percentile(minute, share)));
    const top = ceiling(Math.max(1_000, ...p95));
    const scaled = (values) => line(values.map((value) => (value === null ? null : value / top)));
    this.draw({ p95: scaled(p95), p50: scaled(p50) });
    this.figures({
      p50: duration(percentile(slots, 0.5)), p95: duration(percentile(slots, 0.95)), top: duration(top),
    });
  }
}
