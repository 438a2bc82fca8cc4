// @ts-check
// What the name and file of a function say about it.

/** The kinds of code that flame graphs tell apart by colour. */
export const KINDS = { own: "own code", library: "libraries", standard: "standard library", native: "native" };

/**
 * Return the kind of code that a file has.
 *
 * @param {string} file
 * @returns {keyof typeof KINDS}
 */
export function kindOf(file) {
  if (!file || /^<(cfunc|built-in|internal)/.test(file)) return "native";
  if (/[\\/](site-packages|dist-packages|gems)[\\/]/.test(file)) return "library";
  if (file.startsWith("<frozen ") || /[\\/]lib(64)?[\\/](python|ruby[\\/])[\d.]+[\\/]/.test(file) || /[\\/]Python\d+[\\/]Lib[\\/]/.test(file)) return "standard";
  return "own";
}

/** Return whether others in the same method may have the same label: Ruby's blocks, and lambdas, which are rarely longer than a line. */
export function isOneOfMany(label) {
  return ["block in ", "block (", "rescue in ", "ensure in "].some((start) => label.startsWith(start)) || label.endsWith("<lambda>");
}

const FOLDED = [
  { name: "(import machinery)", has: (label, file) => file.startsWith("<frozen importlib") || /[\\/]importlib[\\/]_bootstrap/.test(file) },
  { name: "(program start)", has: (label, file) => file === "<frozen runpy>" || /[\\/]runpy\.py$/.test(file) || /[\\/]tornado_rbkit[\\/](cli[\\/]|__main__\.py)/.test(file) },
];

/** Return the name under which a function's frames are folded, null if its frames are shown. */
export function foldedAs(label, file) {
  return FOLDED.find(({ has }) => has(label, file))?.name ?? null;
}

// A thread in one of these functions waits. Frames of Python's C functions are not sampled, so these are the callers of
// the blocking calls, as py-spy has them where the system does not tell; `time.sleep` is not among them.
const WAITING = [
  [/(^|\.)(wait|wait_for|_wait_for_tstate_lock|join)$/, /[\\/]threading\.py$/],
  [/(^|\.)(select|poll)$/, /[\\/](selectors|select)\.py$/],
  [/(^|\.)(accept|readinto|recv|recvfrom)$/, /[\\/]socket\.py$/],
  [/(^|\.)(poll|select)$/, /[\\/]zmq[\\/]/],
  [/(^|\.)(wait|_wait|_try_wait|poll)$/, /[\\/](subprocess|multiprocessing[\\/](connection|popen_\w+))\.py$/],
  [/^(Kernel#sleep|Thread#(join|value)|(Thread::)?(Mutex#sleep|ConditionVariable#wait|(Sized)?Queue#(pop|shift|deq))|IO\.select|IO#wait\w*|\w*Server#(sys)?accept|Process\.wait\w*)$/, /^<(cfunc|internal)/],
];

/** Return whether a thread waits while this function is its innermost one. */
export function isWaiting(label, file) {
  return WAITING.some(([name, where]) => where.test(file) && name.test(label));
}
