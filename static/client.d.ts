/**
 * Follow one task to its end: `done` resolves with the terminal snapshot. It is rejected with a Problem where there is
 * no such task, or no more, with an AbortError after `close()`. `after` is the last version seen.
 *
 * @param {string} taskId
 * @param {Options & {after?: number}} [options]
 * @returns {Handle}
 */
export function follow(taskId: string, { after, ...options }?: Options & {
    after?: number;
}): Handle;
/**
 * Begin a task.
 *
 * @param {string} prompt
 * @param {Object<string, unknown>} [params]
 * @param {Access} [access]
 * @returns {Promise<{taskId: string, status: 'pending', version: number}>}
 */
export function generate(prompt: string, params?: {
    [x: string]: unknown;
}, access?: Access): Promise<{
    taskId: string;
    status: "pending";
    version: number;
}>;
/**
 * A page of the caller's tasks, newest first; its `cursor` asks for the next one.
 *
 * @param {{limit?: number, cursor?: string} & Access} [options]
 * @returns {Promise<{tasks: Snapshot[], cursor?: string}>}
 */
export function list({ limit, cursor, ...access }?: {
    limit?: number;
    cursor?: string;
} & Access): Promise<{
    tasks: Snapshot[];
    cursor?: string;
}>;
/**
 * Delete a task with its log and its picture; a running one is cancelled first.
 *
 * @param {string} taskId
 * @param {Access} [access]
 * @returns {Promise<{taskId: string, outcome: 'deleted'}>}
 */
export function remove(taskId: string, access?: Access): Promise<{
    taskId: string;
    outcome: "deleted";
}>;
/** No success (RFC 9457); `code` is stable, the message for people. */
export class Problem extends Error {
    /** @param {{status?: number, code?: string, detail?: string}} body @param {number} [retryAfterMs] */
    constructor(body: {
        status?: number;
        code?: string;
        detail?: string;
    }, retryAfterMs?: number);
    status: number | undefined;
    code: string | undefined;
    retryAfterMs: number;
    /** No such task: the one answer that ends following. */
    get gone(): boolean;
}
export function isTerminal(task: {
    status: string;
}): boolean;
/** What all.js and share.js are made of. @type {any} */
export const parts: any;
export type Snapshot = import("./types.js").Snapshot;
export type Access = import("./types.js").Access;
export type Options = import("./types.js").Options;
export type Handle = import("./types.js").Handle;
