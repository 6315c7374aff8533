/**
 * Follow until `close()`; onUpdate gets each task's versions in rising order, onDeleted each task that is no more.
 *
 * @param {import('./types.js').AllOptions} [options]
 * @returns {import('./client.js').Handle}
 */
export function followAll(options?: import("./types.js").AllOptions): import("./client.js").Handle;
/**
 * The same over a WebSocket and nothing else, for many changes a second.
 *
 * @param {import('./types.js').AllOptions} [options]
 * @returns {import('./client.js').Handle}
 */
export function followAllBySocket(options?: import("./types.js").AllOptions): import("./client.js").Handle;
/**
 * Which of the tasks `known` before a list was asked for are no more: they belong where it was read, and are not there.
 *
 * @param {Iterable<{taskId: string, createdAt: string|number}>} known times as in a task, or in ms
 * @param {{taskId: string, createdAt: string}[]} listed newest first, from the first on
 * @param {boolean} whole whether there are no older ones
 * @returns {string[]}
 */
export function vanished(known: Iterable<{
    taskId: string;
    createdAt: string | number;
}>, listed: {
    taskId: string;
    createdAt: string;
}[], whole: boolean): string[];
