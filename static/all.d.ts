/**
 * Follow until `close()`; onUpdate gets each task's versions in rising order.
 *
 * @param {import('./client.js').Options} [options]
 * @returns {import('./client.js').Handle}
 */
export function followAll(options?: import("./client.js").Options): import("./client.js").Handle;
/**
 * The same over a WebSocket and nothing else, for many changes a second.
 *
 * @param {import('./client.js').Options} [options]
 * @returns {import('./client.js').Handle}
 */
export function followAllBySocket(options?: import("./client.js").Options): import("./client.js").Handle;
