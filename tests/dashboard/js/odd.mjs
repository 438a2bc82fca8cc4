// Events of all kinds, and what makes them odd: values of other types, missing and unknown fields, damaged bytes.

import { created, destroyed, dump, frame, heapObject, numbered, sample } from "./rbkit.mjs";

export const ODD = [
  null, NaN, Infinity, -Infinity, -1, 0, 2 ** 53, -(2 ** 53), 1e308, 3.5, 8.64e15, "", "x", "__proto__", "constructor", "\ud800", "x".repeat(2000),
  [], {}, [1], [[]], { a: 1 }, new Map([["__proto__", { polluted: 1 }]]), new Map([[[1], 2]]), true, false, new Uint8Array(3),
];

/** Change a message here and there. */
export function mutate(value, random) {
  if (random() < 0.03) return random.of(ODD);
  if (Array.isArray(value)) return value.map((each) => mutate(each, random));
  if (!(value instanceof Map)) return value;
  const changed = new Map([...value].map(([key, each]) => [key, mutate(each, random)]));
  if (changed.size && random() < 0.03) changed.delete(random.of([...changed.keys()]));
  if (random() < 0.01) changed.set("__proto__", { polluted: 1 });
  return changed;
}

/** Return an event of any kind, of Ruby or of Python; its time may be earlier than that of the event before. */
export function anEvent(random, number) {
  const time = 1.8e12 + number - Math.floor(random() * 50);
  const named = new Map([...heapObject(2, "function", [1, number]), [13, "shop.remember"], random.of([[16, ["a", null]], [17, ["k", 5]], [17, 0]])]);
  const vitals = { count: number, total_heap_size: 1, process_rss: 2 ** 20, process_cpu_ms: number, process_threads: 3, gc_pause_ms: 1, old_objects: random.of(["", 5]) };
  const top = new Map([...frame("f"), [19, "MainThread"], [20, random.of(["Task-1", "load"])], [21, random.of(["running", "waiting", "lock", "gc"])], [22, 9]]);
  return random.of([
    () => created(number, "Foo", time),
    () => destroyed(number, time),
    () => numbered({ 0: 2, 1: time }),
    () => numbered({ 0: 3, 1: time }),
    () => numbered({ 0: 4, 1: time }),
    () => numbered({ 0: 6, 1: time, 2: new Map([["count", 1], ["heap_live_slots", 5]]) }),
    () => numbered({ 0: 6, 1: time, 2: new Map(Object.entries(vitals)) }),
    () => dump(random.of([1, 2]), 3, [heapObject(1, "A", [2, 3]), heapObject(number, "B")], time),
    () => new Map([...dump(random.of([1, 2]), 3, [named, heapObject(1, "module", [2])], time), [18, 2 ** 20], [23, 2 ** 19]]),
    () => sample([frame("f"), frame("g")], time),
    () => sample([top, frame("g")], time),
    () => numbered({ 0: 99, 1: time }),
  ])();
}

/** Cut bytes off, or change one. */
export function damage(bytes, random) {
  const copy = bytes.slice();
  if (random() < 0.1) copy[Math.floor(random() * copy.length)] = Math.floor(random() * 256);
  return random() < 0.1 ? copy.subarray(0, Math.floor(random() * copy.length)) : copy;
}
