// The shapes that client.js takes and gives, for editors and TypeScript; nothing in here runs.

/**
 * A task at one version; times are ISO 8601 UTC, progress is percent, result a URL, preview a small data URL.
 *
 * @typedef {{taskId: string, status: 'pending'|'processing'|'completed'|'failed', result: ?string, error: ?string,
 *   errorCode: ?string, prompt: string, params: Object<string, unknown>, progress: ?number, message: ?string,
 *   preview: ?string, step: ?number, steps: ?number, attempt: number, version: number, statusVersion: number,
 *   cancelled: boolean, batchId: ?string, queuePosition: ?number, etaMs: ?number, pollAfterMs: ?number,
 *   createdAt: string, updatedAt: string}} Snapshot
 */

/**
 * How one is connected. refused: the server has no room and says when to come back; failed: there is no such task, or no
 * more; reconnecting with the code of a 401 (access_token_expired, say): sign in again, and it goes on.
 *
 * @typedef {{via: 'EventSource'|'fetch'|'WebSocket'|'polling', problem?: {code?: string, detail?: string},
 *   phase: 'connecting'|'live'|'reconnecting'|'refused'|'ended'|'failed'}} State
 */

/**
 * Where Taskbeam is, if not at the root of this origin, and as whom it is asked. getToken is called before each request,
 * so that it may refresh what it gives; ticket before each EventSource and WebSocket, which send no headers, for a new one.
 * With neither cookies are sent, also to another origin.
 *
 * @typedef {string|null|undefined} Token
 * @typedef {{baseUrl?: string, getToken?: () => Token|Promise<Token>,
 *   ticket?: () => Promise<string>}} Access
 */

/**
 * onUpdate gets the versions of a task in strictly rising order, the terminal one last; onPosition what has no version.
 *
 * @typedef {{onUpdate?: (task: Snapshot) => void, onState?: (state: State) => void,
 *   onPosition?: (advice: {taskId: string, queuePosition: ?number, etaMs: ?number}) => void}} Hooks
 */

/** @typedef {Access & Hooks} Options */

/**
 * onDeleted gets each task that is no more, once: it may be one that onUpdate never had.
 *
 * @typedef {Options & {onDeleted?: (taskId: string) => void}} AllOptions
 */

/** `done` is the terminal snapshot; `close()` ends following at once. @typedef {{close: () => void, done: Promise<Snapshot>}} Handle */

export {};
