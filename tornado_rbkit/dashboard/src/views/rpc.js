// Calls to the worker, which return promises.

import { query } from "./address.js";

/** @typedef {import("../connection/protocol.js").Facts} Facts */

/**
 * @typedef {{number: number, since: number | null, facts: Facts | null, samples: number}} ProcessSummary `since` in ms.
 *
 * @typedef {object} Header What the worker's `header` returns.
 * @property {"connecting" | "live" | "waiting" | "lost" | "unopened" | "refused" | "gone" | "closed" | "file" | "absent"} state
 * @property {string} reason
 * @property {number | null} retryAt In ms.
 * @property {number} pending
 * @property {number} session
 * @property {{url?: string, file?: string, bytes?: number, size?: number, damage?: string | null} | null} source
 * @property {Facts | null} facts Of the newest process.
 * @property {number | null} clients
 * @property {ProcessSummary[]} processes The newest last; there is one at least.
 * @property {number} messages
 * @property {number} bytes
 * @property {number} missing
 * @property {number} dropped
 * @property {number} unreadable
 * @property {{number: number, text: string}[]} log
 * @property {number} leftOut
 * @property {number} recorded
 * @property {number} notKept
 * @property {number | null} lastTime In ms.
 * @property {boolean} losesOnReload Whether a reload would lose what is shown.
 */

const worker = new Worker(new URL(`worker.js${query}`, import.meta.url), { type: "module" });
const calls = new Map();
let last = 0;

worker.onmessage = ({ data: { call, result, error } }) => {
  const { resolve, reject } = calls.get(call);
  calls.delete(call);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
};

/** Register a function that is called with the reason when the worker fails outside of a call. */
export function onFailure(report) {
  worker.onerror = ({ message }) => report(message ?? "it could not be loaded");
}

/** @typedef {(command: string) => Promise<string | null>} Send Sends a command; returns null, or why it was not carried out. */

/**
 * Return a function that sends commands to the profiler that is in view now, and to no other one that the user goes to
 * meanwhile. What the user does with one click uses one function.
 *
 * @returns {Promise<Send>}
 */
export async function sender() {
  /** @type {Header} */
  const { session } = await ask("header");
  return (name) => ask("command", { name, session });
}

/** Call a method of the worker. Use `Latest` for results that are drawn. */
export function ask(method, argument) {
  return new Promise((resolve, reject) => {
    calls.set(++last, { resolve, reject });
    worker.postMessage({ call: last, method, argument });
  });
}
