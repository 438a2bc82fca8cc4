// Calls to the worker, each a promise.

const worker = new Worker(new URL(`worker.js${location.search}`, import.meta.url), { type: "module" });
const calls = new Map();
let last = 0;

worker.onmessage = ({ data: { call, result, error } }) => {
  const { resolve, reject } = calls.get(call);
  calls.delete(call);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
};

/** Call a method of the worker. */
export function ask(method, argument) {
  return new Promise((resolve, reject) => {
    calls.set(++last, { resolve, reject });
    worker.postMessage({ call: last, method, argument });
  });
}
