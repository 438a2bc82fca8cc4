// @ts-check
// Calls to the worker, which return promises.

import { query } from "./address.js";

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

/** Call a method of the worker. Use `Latest` for results that are drawn. */
export function ask(method, argument) {
  return new Promise((resolve, reject) => {
    calls.set(++last, { resolve, reject });
    worker.postMessage({ call: last, method, argument });
  });
}
