// CPU samples in the formats of other tools, the same bytes that `tornado-rbkit export` writes.

import { isOneOfMany } from "./functions.js";
import { STACKS } from "./threads.js";

/** Return a speedscope file, in which each sample has the weight 1. @param {import("./profile.js").CpuProfile} profile */
export function speedscope(profile, name) {
  const { stacks, threads } = profile;
  const places = new Map(); // index of a label at a file and line
  const shared = [];
  const indices = stacks.frames.map(({ fn, line }) => {
    const { label, file, isMark } = stacks.functions[fn];
    const key = `${label}\0${file}\0${line}`;
    const known = places.get(key);
    if (known !== undefined || isMark) return known;
    places.set(key, shared.length);
    return shared.push({ name: label, file, line }) - 1;
  });
  const orders = profile.orders();
  const file = {
    $schema: "https://www.speedscope.app/file-format-schema.json",
    exporter: "tornado_rbkit",
    name,
    shared: { frames: shared },
    profiles: threads.all.map((thread) => {
      const order = orders.get(thread);
      const counted = order?.length === thread.samples && !thread.isMerged ? order.map((stack) => [stack, 1]) : [...countsOf(thread)].sort(([a], [b]) => a - b);
      return {
        type: "sampled",
        name: titleOf(thread),
        unit: "none",
        startValue: 0,
        endValue: thread.samples,
        samples: counted.map(([stack]) => stacks.framesOf(stack).map((frame) => indices[frame])),
        weights: counted.map(([, weight]) => weight),
      };
    }),
  };
  return `${JSON.stringify(file).replace(/[\u007f-\uffff]/g, escaped)}\n`;
}

/** Return the sorted stacks that flamegraph.pl and similar tools read. @param {import("./profile.js").CpuProfile} profile */
export function collapsed({ stacks, threads }) {
  const place = ({ fn, line }) => {
    const { label, file } = stacks.functions[fn];
    return isOneOfMany(label) ? `${label} (${file}:${line})` : label;
  };
  const word = (label) => label.replaceAll(";", ":").replace(NOT_PRINTABLE, " ").trim() || "?";
  const counts = new Map();
  for (const thread of threads.all) {
    for (const [stack, count] of countsOf(thread)) {
      const line = [word(titleOf(thread)), ...stacks.framesOf(stack).map((frame) => word(place(stacks.frames[frame])))].join(";");
      counts.set(line, (counts.get(line) ?? 0) + count);
    }
  }
  return [...counts].sort(([a], [b]) => byCodePoint(a, b)).map(([line, count]) => `${line} ${count}\n`).join("");
}

/** Return the thread's id, which is unique, and its name if it is known. @param {import("./threads.js").Thread} thread */
function titleOf({ id, name }) {
  return name === null ? `thread ${id}` : `thread ${id} (${name})`;
}

/** Return the samples of a thread by stack. */
function countsOf(thread) {
  const counts = new Map();
  for (const [key, count] of thread.counts) counts.set(key % STACKS, (counts.get(key % STACKS) ?? 0) + count);
  return counts;
}

// Control and format characters, unassigned ones and separators: what Python's str.isprintable() is false for.
const NOT_PRINTABLE = /[\p{C}\p{Z}]/gu;

/** Return a character as JSON escapes it. */
function escaped(character) {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

/** Compare texts by code point, as Python does; `<` compares UTF-16 units, in which surrogates precede U+E000. */
function byCodePoint(a, b) {
  let at = 0;
  while (at < a.length && a[at] === b[at]) at++;
  const unit = (text) => {
    const code = at < text.length ? text.charCodeAt(at) : -1;
    return code >= 0xd800 && code < 0xe000 ? code + 0x10000 : code;
  };
  return unit(a) - unit(b);
}
