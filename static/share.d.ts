/**
 * `follow` as in client.js, over one connection, which is opened with the first task and closed with the last.
 * It does not know whose the tasks are: call it anew for another user, when what it gave to this one is closed.
 *
 * @param {import('./types.js').Access} [access]
 * @returns {{follow: (taskId: string, options?: import('./types.js').Hooks & {after?: number}) => import('./types.js').Handle}}
 */
export function share(access?: import("./types.js").Access): {
    follow: (taskId: string, options?: import("./types.js").Hooks & {
        after?: number;
    }) => import("./types.js").Handle;
};
