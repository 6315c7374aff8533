/**
 * A task at one version; times are ISO 8601 UTC, progress is percent, result a URL, preview a small data URL.
 */
export type Snapshot = {
    taskId: string;
    status: "pending" | "processing" | "completed" | "failed";
    result: string | null;
    error: string | null;
    errorCode: string | null;
    prompt: string;
    params: {
        [x: string]: unknown;
    };
    progress: number | null;
    message: string | null;
    preview: string | null;
    step: number | null;
    steps: number | null;
    attempt: number;
    version: number;
    statusVersion: number;
    cancelled: boolean;
    batchId: string | null;
    queuePosition: number | null;
    etaMs: number | null;
    pollAfterMs: number | null;
    createdAt: string;
    updatedAt: string;
};
/**
 * How one is connected. refused: the server has no room and says when to come back; failed: there is no such task, or no
 * more; reconnecting with the code of a 401 (access_token_expired, say): sign in again, and it goes on.
 */
export type State = {
    via: "EventSource" | "fetch" | "WebSocket" | "polling";
    problem?: {
        code?: string;
        detail?: string;
    };
    phase: "connecting" | "live" | "reconnecting" | "refused" | "ended" | "failed";
};
/**
 * Where Taskbeam is, if not at the root of this origin, and as whom it is asked. getToken is called before each request,
 * so that it may refresh what it gives; ticket before each EventSource and WebSocket, which send no headers, for a new one.
 * With neither cookies are sent, also to another origin.
 */
export type Token = string | null | undefined;
/**
 * Where Taskbeam is, if not at the root of this origin, and as whom it is asked. getToken is called before each request,
 * so that it may refresh what it gives; ticket before each EventSource and WebSocket, which send no headers, for a new one.
 * With neither cookies are sent, also to another origin.
 */
export type Access = {
    baseUrl?: string;
    getToken?: () => Token | Promise<Token>;
    ticket?: () => Promise<string>;
};
/**
 * onUpdate gets the versions of a task in strictly rising order, the terminal one last; onPosition what has no version.
 */
export type Hooks = {
    onUpdate?: (task: Snapshot) => void;
    onState?: (state: State) => void;
    onPosition?: (advice: {
        taskId: string;
        queuePosition: number | null;
        etaMs: number | null;
    }) => void;
};
export type Options = Access & Hooks;
/**
 * onDeleted gets each task that is no more, once: it may be one that onUpdate never had.
 */
export type AllOptions = Options & {
    onDeleted?: (taskId: string) => void;
};
/**
 * `done` is the terminal snapshot; `close()` ends following at once.
 */
export type Handle = {
    close: () => void;
    done: Promise<Snapshot>;
};
