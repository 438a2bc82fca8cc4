// What the name and file of a function say about it.

/** The kinds of code that flame graphs tell apart by colour. */
export const KINDS = { own: "own code", library: "libraries", standard: "standard library", native: "native", gc: "garbage collection", lock: "lock waits" };

/**
 * Return the kind of code that a file has.
 *
 * @param {string} file
 * @returns {keyof typeof KINDS}
 */
export function kindOf(file) {
  if (!file || /^<(cfunc|built-in|internal)/.test(file)) return "native";
  if (/[\\/](site-packages|dist-packages|gems)[\\/]/.test(file) || isConsoleScript(file)) return "library";
  if (file.startsWith("<frozen ") || /[\\/]lib(64)?[\\/](python|ruby[\\/])[\d.]+[\\/]/.test(file) || /[\\/]Python\d+[\\/]Lib[\\/]/.test(file)) return "standard";
  return "own";
}

/** Return whether pip has made a file, which only calls a library: bin/gunicorn, Scripts\gunicorn.exe\__main__.py */
function isConsoleScript(file) {
  return /[\\/]bin[\\/][^\\/.]+$|[\\/]Scripts[\\/][^\\/]+\.exe[\\/]__main__\.py$/.test(file);
}

/** Return whether others in the same method may have the same label: Ruby's blocks, and lambdas, which are rarely longer than a line. */
export function isOneOfMany(label) {
  return ["block in ", "block (", "rescue in ", "ensure in "].some((start) => label.startsWith(start)) || label.endsWith("<lambda>");
}

const FOLDED = [
  { name: "(import machinery)", has: (label, file) => file.startsWith("<frozen importlib") || /[\\/]importlib[\\/]_bootstrap/.test(file) },
  { name: "(program start)", has: (label, file) => file === "<frozen runpy>" || /[\\/]runpy\.py$/.test(file) || /[\\/](tornado_rbkit[\\/](cli[\\/]|__main__\.py)|tornado-rbkit(\.exe[\\/]__main__\.py)?$)/.test(file) },
  { name: "(rbkit)", has: (label, file) => /[\\/]tornado_rbkit[\\/]/.test(file) && !/[\\/](workload|demo)\.py$/.test(file) },
];

/** Return the name under which a function's frames are folded, null if its frames are shown. */
export function foldedAs(label, file) {
  return FOLDED.find(({ has }) => has(label, file))?.name ?? null;
}

/**
 * Return the part that a function has in running the cells of a notebook: it belongs to IPython and its kernel
 * ("package"), executes the code of a cell ("run"), or runs them ("loop"); null if it has none.
 *
 * @param {string} label
 * @param {string} file
 */
export function runnerOf(label, file) {
  if (/[\\/]IPython[\\/]core[\\/]interactiveshell\.py$/.test(file) && /(^|\.)run_code$/.test(label)) return "run";
  if (/[\\/](ipykernel|IPython|traitlets)[\\/]|[\\/]ipykernel_launcher\.py$/.test(file)) return "package";
  const runs = file === "<frozen runpy>" || /[\\/](runpy|contextlib|threading)\.py$|[\\/]asyncio[\\/]|[\\/]tornado[\\/](platform[\\/]|ioloop\.py)/.test(file);
  return runs ? "loop" : null;
}

/**
 * Return the number of outermost frames that only run a cell, or the loop of a kernel: those up to the execution of the
 * cell's code, or as far as they are IPython's, the kernel's, and the loops and threads that run them.
 *
 * @param {number[]} stack Functions, outermost first: indices.
 * @param {{runner: "package" | "run" | "loop" | null}[]} functions
 */
export function startLength(stack, functions) {
  let hasPackage = false;
  for (let length = 0; ; length++) {
    const runner = length < stack.length ? functions[stack[length]].runner : null;
    if (runner === "run") return length + 1;
    if (runner === null) return hasPackage ? length : 0;
    hasPackage ||= runner === "package";
  }
}

// A thread in one of these functions waits. Frames of Python's C functions are not sampled, so these are the callers of
// the blocking calls, as py-spy has them where the system does not tell; `time.sleep` is not among them.
const WAITING = [
  [/(^|\.)(wait|wait_for|_wait_for_tstate_lock|join)$/, /[\\/]threading\.py$/],
  [/(^|\.)_worker$/, /[\\/]concurrent[\\/]futures[\\/]thread\.py$/],
  [/(^|\.)(select|poll)$/, /[\\/](selectors|select)\.py$/],
  [/(^|\.)(accept|readinto|recv|recvfrom)$/, /[\\/]socket\.py$/],
  [/(^|\.)(poll|select)$/, /[\\/]zmq[\\/]/],
  [/(^|\.)(wait|_wait|_try_wait|poll)$/, /[\\/](subprocess|multiprocessing[\\/](connection|popen_\w+))\.py$/],
  [/(^|\.)run$/, /[\\/]ipykernel[\\/](heartbeat|parentpoller)\.py$/],
  [/(^|\.)(_on_run|_read_line|_recv)$/, /[\\/]debugpy[\\/]|[\\/]_?pydevd/],
  [/^(Kernel#sleep|Thread#(join|value)|(Thread::)?(Mutex#sleep|ConditionVariable#wait|(Sized)?Queue#(pop|shift|deq))|IO\.select|IO#wait\w*|\w*Server#(sys)?accept|Process\.wait\w*)$/, /^<(cfunc|internal)/],
];

/** Return whether a thread waits while this function is its innermost one. */
export function isWaiting(label, file) {
  return WAITING.some(([name, where]) => where.test(file) && name.test(label));
}
