// Times, durations and states in words, as short as a table needs them.

export const STATUS = { pending: 'Waiting', processing: 'In progress', completed: 'Finished', failed: 'Failed' };

/** @param {{status: string, cancelled?: boolean}} task */
export const statusOf = (task) => (task.cancelled && task.status === 'failed' ? 'Cancelled' : STATUS[task.status]);

/** @param {?number} ms */
export function duration(ms) {
  if (ms === null) return '–';
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 59_500) return `${(ms / 1_000).toFixed(ms < 9_950 ? 1 : 0)} s`;
  const seconds = Math.round(ms / 1_000);
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3_600)} h ${Math.floor((seconds % 3_600) / 60)} min`;
}

/** @param {number} ms */
export function ago(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1_000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)} h ago`;
  const days = Math.floor(seconds / 86_400);
  return `${days} day${days > 1 ? 's' : ''} ago`;
}

const GROUPED = new Intl.NumberFormat('en');

/** @param {number} count */
export const number = (count) => GROUPED.format(count);

/** Written only where it differs: what is written is laid out, and in a live region read. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
