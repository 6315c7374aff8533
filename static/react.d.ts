/**
 * Follow a task for as long as the component is mounted; no task while `taskId` is null. For many tasks on a page give
 * the `follow` of share(): `const { follow } = share()`, outside of any component.
 *
 * @param {?string} taskId
 * @param {import('./types.js').Access & {follow?: typeof follow}} [options]
 * @returns {{task: ?import('./types.js').Snapshot, state: ?import('./types.js').State, error: ?Error}}
 */
export function useTask(taskId: string | null, { follow: given, baseUrl, getToken, ticket }?: import("./types.js").Access & {
    follow?: typeof follow;
}): {
    task: import("./types.js").Snapshot | null;
    state: import("./types.js").State | null;
    error: Error | null;
};
import { follow } from './client.js';
