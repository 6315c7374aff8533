// A React hook over client.js: the task at its newest version, how one is connected, and why there is no such task.

import { useEffect, useRef, useState } from 'react';

import { follow } from './client.js';

const NOTHING = { taskId: /** @type {?string} */ (null), task: null, state: null, error: null };

/**
 * Follow a task for as long as the component is mounted; no task while `taskId` is null. For many tasks on a page give
 * the `follow` of share(): `const { follow } = share()`, outside of any component.
 *
 * @param {?string} taskId
 * @param {import('./types.js').Access & {follow?: typeof follow}} [options]
 * @returns {{task: ?import('./types.js').Snapshot, state: ?import('./types.js').State, error: ?Error}}
 */
export function useTask(taskId, { follow: given, baseUrl, getToken, ticket } = {}) {
  const [known, setKnown] = useState(NOTHING);
  const proofs = useRef({ getToken, ticket });
  const [hasToken, hasTicket] = [getToken !== undefined, ticket !== undefined];
  useEffect(() => {
    proofs.current = { getToken, ticket }; // a new function at each render is no reason to connect anew
  });
  useEffect(() => {
    if (!taskId) return undefined;
    let mounted = true;
    const put = (change) =>
      mounted && setKnown((old) => ({ ...(old.taskId === taskId ? old : NOTHING), taskId, ...change }));
    // Not as a default above: a minifier may put the function itself there, and it is then another at each render.
    const handle = (given ?? follow)(taskId, {
      ...(baseUrl !== undefined && { baseUrl }),
      ...(hasToken && { getToken: () => proofs.current.getToken() }),
      ...(hasTicket && { ticket: () => proofs.current.ticket() }),
      onUpdate: (task) => put({ task }),
      onState: (state) => put({ state }),
    });
    handle.done.catch((error) => put({ error }));
    return () => {
      mounted = false;
      handle.close();
    };
  }, [taskId, given, baseUrl, hasToken, hasTicket]);
  const { task, state, error } = known.taskId === taskId ? known : NOTHING;
  return { task, state, error };
}
