// The stacks of one thread in their order in time, as frames of a graph that is as wide as the time.

import { LONGEST_STEP } from "./threads.js";

// Columns into which the time is divided; each has the stack that the thread had in its middle.
const COLUMNS = 800;

// Most frames of the graph; the shortest beyond it are joined into frames that are cut.
const MAX_FRAMES = 5000;

/**
 * Return the stack that a thread had in the middle of each column, -1 where it was not sampled.
 *
 * @param {(take: (stack: number, elapsed: number) => void) => void} each Calls a function with the thread's samples in
 *   their order; a stack of -1 is a sample to leave out.
 * @param {[number, number]} range In ms since the first sample.
 * @param {number} period Of samples, in ms: as long lasts a sample before a pause.
 */
export function columnsOf(each, [from, to], period) {
  const columns = new Int32Array(COLUMNS).fill(-1);
  const columnAfter = (elapsed) => Math.min(COLUMNS, Math.max(0, Math.ceil(((elapsed - from) / (to - from)) * COLUMNS - 0.5)));
  let [before, since] = [-1, from];
  const fill = (until) => columns.fill(before, columnAfter(since), columnAfter(until - since > LONGEST_STEP ? since + period : until));
  each((stack, elapsed) => {
    fill(elapsed);
    [before, since] = [stack, elapsed];
  });
  fill(Math.min(to, since + period));
  return columns;
}

/**
 * Return the frames of a graph, as `build` does: {name, fn, value, start, self, parent}, `value` and `start` in ms. A
 * frame that is a `gap` is time without samples.
 *
 * @param {import("./stacks.js").Stacks} stacks
 * @param {Int32Array} columns From `columnsOf`.
 * @param {[number, number]} range In ms since the first sample.
 */
export function timeOrder(stacks, columns, [from, to]) {
  const width = (to - from) / columns.length;
  /** @type {any[]} */
  const frames = [{ name: "all", value: to - from, start: from, self: 0, parent: null }];
  let open = [0]; // the indices of the frames to which the last column belongs
  columns.forEach((stack, column) => {
    const path = stack < 0 ? [-1] : shownOf(stacks, stack);
    let depth = 0;
    while (depth < path.length && frames[open[depth + 1]]?.fn === path[depth]) depth++;
    open = open.slice(0, depth + 1);
    for (const fn of path.slice(depth)) open.push(frames.push(begun(stacks, fn, from + column * width, open[open.length - 1])) - 1);
    for (const index of open.slice(1)) frames[index].value += width;
    frames[open[open.length - 1]].self += width;
  });
  const shown = frames.map(({ fn, ...frame }) => (fn === -1 ? { ...frame, gap: true } : { ...frame, fn }));
  return { frames: bounded(shown), zoom: 0, total: to - from, matched: 0 };
}

function begun(stacks, fn, start, parent) {
  const { name, file, line, kind } = stacks.functions[fn] ?? { name: "no sample" };
  return { name, file, line, kind, fn, value: 0, start, self: 0, parent };
}

/** Return the functions that stand for a stack's frames, outermost first; a folded function's calls of itself are one. */
function shownOf(stacks, stack) {
  const path = [];
  for (; stack; stack = stacks.parent[stack]) {
    const fn = stacks.shown[stack];
    if (!(stacks.functions[fn].isFold && path[path.length - 1] === fn)) path.push(fn);
  }
  return path.reverse();
}

/** Return the longest frames, and frames that stand for the others beside each other. */
function bounded(frames) {
  if (frames.length <= MAX_FRAMES) return frames;
  const shortest = frames.map(({ value }) => value).sort((a, b) => b - a)[MAX_FRAMES];
  const kept = [];
  const places = new Map(); // index in `kept` by index in `frames`
  let last = null;
  frames.forEach((frame, index) => {
    const parent = places.get(frame.parent);
    if (frame.parent !== null && parent === undefined) return; // it hangs on one that is cut
    if (frame.value > shortest || frame.parent === null) {
      places.set(index, kept.push({ ...frame, parent: parent ?? null }) - 1);
    } else if (last?.parent === parent && Math.abs(last.start + last.value - frame.start) < 1e-6) {
      last.value += frame.value;
      last.cut++;
      last.name = `${last.cut} frames too small to draw`;
    } else {
      kept.push((last = { name: "1 frame too small to draw", cut: 1, value: frame.value, self: frame.value, start: frame.start, parent }));
    }
  });
  return kept;
}
