// The functions of a selection by self and total samples, and what is known of one function.

import { ROOT } from "./stacks.js";

// Most callers, callees and lines shown of a function.
const DETAILS = 50;

/** Return whether a function has a text in its name or file. */
export function has({ label, file }, text) {
  return `${label} ${file}`.toLowerCase().includes(text.toLowerCase());
}

/**
 * Return the functions with their self and total samples; beside an earlier selection also how much larger their shares
 * are than they were in it, as `selfChange` and `totalChange`.
 *
 * @param {import("./selection.js").Selection} selection
 * @param {import("./selection.js").Selection | null} earlier
 */
export function functionTable(selection, earlier, { filter = "", sort = "self", descending = true, limit = 200 }) {
  const now = selection.byFunction();
  const before = earlier?.byFunction();
  const share = (samples, of) => (of.samples ? samples / of.samples : 0);
  const rows = selection.stacks.functions
    .map(({ label, file, line }, index) => {
      const row = { index, label, file, line, self: now.self[index], total: now.total[index], before: before?.total[index] ?? 0 };
      if (!before || !earlier) return row;
      const change = (key) => share(now[key][index], selection) - share(before[key][index], earlier);
      return { ...row, selfChange: change("self"), totalChange: change("total") };
    })
    .filter((row) => (row.total > 0 || row.before > 0) && has(row, filter));
  const order = descending ? -1 : 1;
  const key = rows.length && !(sort in rows[0]) ? "self" : sort; // a column of a difference that is no more
  rows.sort((a, b) => order * (a[key] < b[key] ? -1 : a[key] > b[key] ? 1 : 0) || b.total - a.total);
  return { rows: rows.slice(0, limit), matching: rows.length, samples: selection.samples };
}

/**
 * Return the callers and callees of a function by samples, and its lines by total and self samples; null if it does not
 * exist.
 *
 * @param {import("./selection.js").Selection} selection
 * @param {number} index
 */
export function functionDetails(selection, index) {
  const { stacks, self, total } = selection;
  const fn = stacks.functions[index];
  if (fn === undefined) return null;
  const callers = new Map();
  const callees = new Map();
  const lines = new Map();
  const add = (map, key, samples) => map.set(key, (map.get(key) ?? 0) + samples);
  // With recursion a sample counts once: for its outermost caller, and for the outermost call of each callee.
  for (let stack = 1; stack < total.length; stack++) {
    if (!total[stack]) continue;
    const caller = stacks.parent[stack];
    if (stacks.shown[stack] === index) {
      const one = lines.get(lineOf(stacks, stack)) ?? { self: 0, samples: 0 };
      one.self += self[stack];
      if (stacks.isFirstAtLine(stack)) one.samples += total[stack];
      lines.set(lineOf(stacks, stack), one);
      if (stacks.isOutermost(stack)) add(callers, caller === ROOT ? null : stacks.shown[caller], total[stack]);
    } else if (stacks.shown[caller] === index && !isCalledBefore(stacks, stack)) {
      add(callees, stacks.shown[stack], total[stack]);
    }
  }
  const most = (map) => [...map].sort((a, b) => b[1] - a[1]).slice(0, DETAILS);
  const named = (map) => most(map).map(([key, samples]) => ({ index: key, label: key === null ? "(thread)" : stacks.functions[key].label, samples }));
  const byTotal = [...lines].sort((a, b) => b[1].samples - a[1].samples || b[1].self - a[1].self).slice(0, DETAILS);
  return {
    ...{ label: fn.label, name: fn.name, file: fn.file, line: fn.line },
    self: [...lines.values()].reduce((all, line) => all + line.self, 0),
    samples: [...callers.values()].reduce((all, samples) => all + samples, 0),
    callers: named(callers),
    callees: named(callees),
    lines: fn.isFold || fn.isMark ? [] : byTotal.map(([line, counts]) => ({ index: line, label: `line ${line}`, ...counts })),
  };
}

function lineOf(stacks, stack) {
  return stacks.frames[stacks.frame[stack]].line;
}

/** Return whether the caller of a stack's frame has called the same function before, on the way to it. */
function isCalledBefore(stacks, stack) {
  const { parent, shown } = stacks;
  const [callee, caller] = [shown[stack], shown[parent[stack]]];
  if (stacks.isOutermost(stack)) return false;
  for (let at = parent[stack]; at !== ROOT; at = parent[at]) {
    if (shown[at] === callee && shown[parent[at]] === caller && parent[at] !== ROOT) return true;
  }
  return false;
}
