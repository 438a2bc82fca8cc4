// The holders of objects, and growth, in known heaps.

import assert from "node:assert/strict";
import { test } from "node:test";
import { findSuspects } from "../../../tornado_rbkit/dashboard/src/model/leaks.js";
import { difference } from "../../../tornado_rbkit/dashboard/src/model/differences.js";
import { IncomingSnapshot } from "../../../tornado_rbkit/dashboard/src/model/incoming.js";
import { readMessage } from "../../../tornado_rbkit/dashboard/src/connection/protocol.js";
import { collection, dump, numbered } from "./rbkit.mjs";

const DICT = "dict";

/** A heap to which objects are added by what they refer to: attributes, keys, or positions; ids are their order. */
class Heap {
  rows = [];

  add(name, { attributes = null, keys = null, items = null, unnamed = [], size = 10, label = null, file = null, line = null, id = this.rows.length + 1 } = {}) {
    const named = attributes ?? keys ?? {};
    const names = Object.keys(named);
    const references = [...(items ?? Object.values(named)), ...unnamed].map((each) => each?.id ?? each);
    const row = { 3: id, 4: name, 5: references, 6: file, 7: line, 8: size };
    if (attributes) row[16] = names;
    else if (items) row[17] = 0;
    else if (keys) row[17] = names;
    if (label) row[13] = label;
    this.rows.push(row);
    return { id, row };
  }

  /** Add an object with a __dict__. */
  instance(name, attributes, more = {}) {
    return this.add(name, { attributes: { __dict__: this.add(DICT, { keys: attributes }) }, ...more });
  }

  module(label, globals) {
    return this.instance("module", globals, { label });
  }

  snapshot(seconds = 0) {
    const { events } = readMessage(collection(0, [dump(1, this.rows.length, this.rows.map(numbered), 1.8e12 + seconds * 1000)]));
    const incoming = new IncomingSnapshot("1", 1.8e12 + seconds * 1000);
    for (const event of events) incoming.add(event, [new Uint8Array()]);
    return incoming.finish(1);
  }
}

const pathOf = (heap, { id }) => heap.snapshot().object(id, 10).heldAs;

function audit(heap, count, { from = 0 } = {}) {
  const entries = {};
  const bodies = [];
  for (let i = from; i < count; i++) {
    const body = heap.add("bytes", { size: 1000, id: 10_000 + 10 * i });
    const context = heap.add("shop.OrderContext", { attributes: { body }, id: 10_001 + 10 * i });
    const cell = heap.add("cell", { attributes: { cell_contents: context }, id: 10_002 + 10 * i });
    entries[`request ${i}`] = heap.add("function", { attributes: { ctx: cell }, label: "__main__.remember.<locals>.finish", file: "/srv/shop_web.py", line: 20, id: 10_003 + 10 * i });
    bodies.push(body);
  }
  const dict = heap.add(DICT, { keys: entries, size: 50, id: 5_000 });
  heap.module("__main__", { AUDIT: dict, SESSIONS: heap.add(DICT, { keys: { a: heap.add("str") } }) });
  return { dict, bodies };
}

test("a path is written as a developer would write it", () => {
  const heap = new Heap();
  const { dict, bodies } = audit(heap, 3);
  assert.equal(pathOf(heap, dict), "__main__.AUDIT");
  assert.equal(pathOf(heap, bodies[1]), "__main__.AUDIT['request 1'] → remember.<locals>.finish → ctx → OrderContext.body");
});

test("classes, lists, instances, numbers as keys and objects without names are on a path as they are", () => {
  const heap = new Heap();
  const inner = heap.add("str");
  const list = heap.add("list", { items: [heap.add("str"), heap.add(DICT, { keys: {} }), heap.add("shop.Basket", { unnamed: [inner] })] });
  const type = heap.instance("type", { items: list }, { label: "shop.Registry" });
  heap.module("shop", { Registry: type });
  assert.equal(pathOf(heap, inner), "shop.Registry.items[2] → Basket");
  const frame = new Heap();
  const blob = frame.add("bytes");
  frame.add("frame", { attributes: { blob }, label: "__main__.work" });
  assert.equal(pathOf(frame, blob), "work() → blob");
});

test("a shorter path without names does not displace the names", () => {
  const heap = new Heap();
  const target = heap.add("list", { items: [] });
  heap.add("builtin", { unnamed: [target] });
  heap.module("app", { CACHE: heap.instance("app.Cache", { rows: target }) });
  assert.equal(pathOf(heap, target), "app.CACHE → Cache.rows");
});

test("Ruby's heaps have classes", () => {
  const heap = new Heap();
  const item = heap.add("Item");
  heap.add("Module", { unnamed: [heap.add("Registry", { unnamed: [heap.add("Array", { unnamed: [item] })] })] });
  assert.equal(pathOf(heap, item), "(Module) → Registry → Array");
});

test("one way of being held is one row, whatever the keys and positions are", () => {
  const heap = new Heap();
  audit(heap, 50);
  const { rows, matching } = heap.snapshot().waysOf("shop.OrderContext", 10);
  assert.equal(matching, 1);
  assert.equal(rows[0].text, "__main__.AUDIT[…] → remember.<locals>.finish → ctx");
  assert.deepEqual([rows[0].count, rows[0].retained], [50, 50 * 1010]);
});

test("a linked list of any length is one way", () => {
  const lengths = [5, 500].map((length) => {
    const heap = new Heap();
    let node = heap.add("Node");
    for (let i = 1; i < length; i++) node = heap.instance("Node", { next: node });
    heap.module("__main__", { HEAD: node });
    return heap.snapshot().waysOf("Node", 10).matching;
  });
  assert.equal(lengths[0], lengths[1]);
});

test("equal names of namespaces within each other are kept apart", () => {
  const heap = new Heap();
  const items = heap.add("list", { items: [] });
  heap.module("__main__", { Outer: heap.instance("type", { Inner: heap.instance("type", { items }, { label: "__main__.Outer.Inner" }) }, { label: "__main__.Outer" }) });
  const { rows } = heap.snapshot().waysOf("list", 10);
  assert.deepEqual(rows.map(({ text }) => text), ["__main__.Outer.Inner.items"]);
});

test("the retained size of a class counts no object twice", () => {
  const heap = new Heap();
  let node = heap.add("Node");
  for (let i = 1; i < 100; i++) node = heap.add("Node", { attributes: { next: node } });
  heap.module("__main__", { HEAD: node });
  const row = heap.snapshot().byClass().find(({ name }) => name === "Node");
  assert.deepEqual([row.count, row.bytes, row.retained], [100, 1000, 1000]);
});

test("only objects that nothing but a cycle refers to are unreachable", () => {
  const heap = new Heap();
  heap.add("Ring", { unnamed: [2], id: 1 });
  heap.add("Ring", { unnamed: [1, 3], id: 2 });
  heap.add("Tail", { id: 3 });
  heap.add("Alone", { unnamed: [5], id: 4 });
  heap.add("Held", { id: 5 });
  const rows = heap.snapshot().byClass();
  assert.deepEqual(Object.fromEntries(rows.map(({ name, unreachable }) => [name, unreachable])), { Ring: 2, Tail: 1, Alone: 0, Held: 0 });
});

test("the leak is the first suspect, with its holder, number, bytes, rate and place", () => {
  const [before, after] = [new Heap(), new Heap()];
  audit(before, 100);
  audit(after, 300, { from: 50 });
  const [early, late] = [before.snapshot(0), after.snapshot(10)];
  early.hold();
  late.hold();
  const { suspects, seconds } = findSuspects(early.holders, late.holders);
  assert.equal(seconds, 10);
  const [first] = suspects;
  assert.equal(first.holder, "__main__.AUDIT");
  assert.equal(first.what, "remember.<locals>.finish");
  assert.deepEqual([first.count, first.countGrowth, first.perSecond], [250, 150, 15]);
  assert.deepEqual([first.retained, first.retainedGrowth], [250 * 1030, 150 * 1030]);
  assert.deepEqual([first.file, first.line], ["/srv/shop_web.py", 20]);
  assert.match(first.evidence.path, /^__main__\.AUDIT\['request \d+'\] → remember\.<locals>\.finish → ctx → OrderContext\.body$/);
  assert.deepEqual([first.evidence.name, first.evidence.size], ["bytes", 1000]);
  assert.equal(suspects.length, 1, "what its objects hold is no suspect of its own");
  const context = difference(early, late).find(({ name }) => name === "shop.OrderContext");
  assert.deepEqual([context.count, context.retained], [150, 150 * 1010]);
});

test("one holder of several kinds of objects is one suspect", () => {
  const [early, late] = [10, 30].map((count) => {
    const heap = new Heap();
    const objects = Array.from({ length: count }, (_, i) => [heap.add("Large", { size: 100 }), heap.add("Small")]).flat();
    heap.module("__main__", { KEPT: heap.add("list", { items: objects }) });
    const snapshot = heap.snapshot(count);
    snapshot.hold();
    return snapshot;
  });
  const { suspects } = findSuspects(early.holders, late.holders);
  assert.deepEqual(suspects.map(({ what, holder, count, also }) => [what, holder, count, also]), [
    ["Large", "__main__.KEPT", 30, [{ what: "Small", isFunction: false, isFrame: false, count: 30 }]],
  ]);
});

test("nothing is suspected where nothing grows", () => {
  const heap = new Heap();
  audit(heap, 20);
  const [early, late] = [heap.snapshot(0), heap.snapshot(10)];
  early.hold();
  late.hold();
  assert.deepEqual(findSuspects(early.holders, late.holders).suspects, []);
});

test("names of unexpected types are unknown, and affect nothing else", () => {
  for (const odd of [5, "text", null, { 1: 2 }, [[1], 2.5, true, {}]]) {
    for (const field of [16, 17, 13]) {
      const heap = new Heap();
      const held = heap.add("str");
      heap.add("module", { unnamed: [held] }).row[field] = odd;
      const snapshot = heap.snapshot();
      assert.equal(snapshot.objects, 2);
      assert.equal(typeof snapshot.object(held.id, 10).heldAs, "string");
    }
  }
});

test("the holders of a million objects are computed within seconds, in slices", async () => {
  const count = 1_000_000;
  const objects = [{ id: count, name: "module", references: [0], names: [".__dict__"], file: "", line: 0, size: 8, label: "__main__" }];
  objects.push({ id: 0, name: "dict", references: Array.from({ length: count - 1 }, (_, i) => i + 1), names: Array.from({ length: count - 1 }, (_, i) => `['key ${i}']`), file: "", line: 0, size: 8 });
  for (let id = 1; id < count; id++) objects.push({ id, name: "Item", references: id % 3 ? [id - 1] : [], names: [".before"], file: "", line: 0, size: 8 });
  const incoming = new IncomingSnapshot("1", 1.8e12);
  incoming.add({ expected: count + 1, objects, unreadable: 0 }, [new Uint8Array()]);
  const snapshot = incoming.finish(1);
  let turns = 0;
  const timer = setInterval(() => turns++);
  await snapshot.holdInSlices();
  clearInterval(timer);
  assert.ok(turns > 3, `${turns} turns`);
  assert.equal(snapshot.holders.retained[0], 8 * (count + 1));
});

test("of a container that is new, with all its items, the items are the suspects", () => {
  const blobs = (count) => {
    const heap = new Heap();
    const globals = { SMALL: heap.add("list", { items: [heap.add("str", { id: 50 })], id: 51 }) };
    const items = Array.from({ length: count }, (_, i) => heap.add("bytes", { size: 1000, id: 1000 + i }));
    if (count) globals.BLOBS = heap.add("list", { items, size: 80, id: 60 });
    heap.instance("module", globals, { label: "__main__", id: 61 });
    return heap;
  };
  const [before, after] = [blobs(0).snapshot(0), blobs(150).snapshot(10)];
  const { suspects } = findSuspects(before.hold(), after.hold());
  assert.deepEqual(suspects.map(({ count, what, holder }) => [count, what, holder]), [[150, "bytes", "__main__.BLOBS"]]);
});

test("a suspect says whether its beginning is known", () => {
  for (const isHeld of [true, false]) {
    const [early, late] = [10, 30].map((count) => {
      const heap = new Heap();
      const kept = heap.add("list", { items: Array.from({ length: count }, () => heap.add("bytearray", { size: 100 })) });
      if (isHeld) heap.add("frame", { attributes: { window: kept }, label: "__main__.frames_of" });
      return heap.snapshot(count);
    });
    const [{ holder, unheld }] = findSuspects(early.hold(), late.hold()).suspects;
    assert.deepEqual([holder, unheld], isHeld ? ["frames_of() → window", null] : ["(list)", "list"]);
  }
});

/** A server's task, whose timer or future holds it, and the bound methods that its event bus keeps. */
function chat(listeners, { held }) {
  const heap = new Heap();
  const methods = Array.from({ length: listeners }, (_, i) => heap.add("method", { attributes: { __self__: heap.add("__main__.Session", { size: 1000, id: 10_000 + 2 * i }) }, id: 10_001 + 2 * i }));
  const list = heap.add("list", { items: methods, id: 5001 });
  const bus = heap.add("__main__.EventBus", { attributes: { listeners: heap.add("defaultdict", { keys: { message: list }, id: 5002 }) }, id: 5003 });
  const server = heap.add("__main__.Server", { attributes: { bus }, id: 5004 });
  const run = heap.add("coroutine", { attributes: { self: server }, label: "__main__.Server.run", id: 5005 });
  const task = heap.add("Task", { unnamed: [heap.add("coroutine", { unnamed: [run], label: "__main__.main", id: 5006 })], id: 5007 });
  heap.add("Task", { unnamed: [heap.add("coroutine", { label: "__main__.client", id: 6000 + listeners })], id: 7000 + listeners });
  if (held === "timer") heap.add("TimerHandle", { attributes: { _args: heap.add("builtin_function_or_method", { unnamed: [task] }) } });
  else heap.add("builtin_function_or_method", { unnamed: [task] });
  return heap;
}

test("listeners that only a task holds are the suspects, whatever the task waits for", () => {
  const [early, late] = [chat(100, { held: "timer" }).snapshot(0), chat(300, { held: "future" }).snapshot(10)];
  const { suspects } = findSuspects(early.hold(), late.hold());
  assert.deepEqual(suspects.map(({ what, holder, countGrowth, unheld }) => [what, holder, countGrowth, unheld]), [
    ["method", "task → main → run.self → Server.bus → EventBus.listeners['message']", 200, null],
  ]);
});

test("more objects of a kind are no suspects if it is an old one that holds what is new", () => {
  const heapOf = (count, shards) => {
    const heap = new Heap();
    const rows = Array.from({ length: count }, (_, i) => heap.add("Row", { size: 100, id: 1000 + i }));
    const pools = Array.from({ length: shards }, (_, i) => heap.add("Pool", { attributes: { rows: heap.add("list", { items: i ? [] : rows, id: 200 + i }) }, id: 300 + i }));
    heap.module("__main__", { POOLS: heap.add("list", { items: pools, id: 100 }) });
    return heap;
  };
  const [early, late] = [heapOf(50, 2).snapshot(0), heapOf(500, 3).snapshot(10)];
  const { suspects } = findSuspects(early.hold(), late.hold());
  assert.deepEqual([suspects[0].what, suspects[0].holder, suspects[0].countGrowth], ["Row", "__main__.POOLS[…] → Pool.rows", 450]);
});

test("an object that grows in place is a suspect, with its growth in bytes", () => {
  const [early, late] = [[1e6, 4000], [3e6, 5000]].map(([log, list]) => {
    const heap = new Heap();
    heap.module("__main__", { LOG: heap.add("bytearray", { size: log, id: 50 }), SMALL: heap.add("list", { items: [], size: list, id: 51 }) });
    return heap.snapshot(log / 1e6);
  });
  const { suspects } = findSuspects(early.hold(), late.hold());
  assert.deepEqual(suspects.map(({ what, holder, count, countGrowth, retainedGrowth, bytesPerSecond }) => [what, holder, count, countGrowth, retainedGrowth, bytesPerSecond]), [
    ["bytearray", "__main__.LOG", 1, 0, 2e6, 1e6],
  ]);
});

test("few objects are noise beside what grows much more, many are not", () => {
  const [early, late] = [[10, 1], [2010, 4]].map(([many, few]) => {
    const heap = new Heap();
    const listOf = (name, count, size, id) => heap.add("list", { items: Array.from({ length: count }, (_, i) => heap.add(name, { size, id: id + i })), id: id - 1 });
    heap.module("__main__", { LEAK: listOf("Large", many, 1000, 10_000), OTHER: listOf("Small", many, 10, 20_000), FEW: listOf("Code", few, 3000, 30_000) });
    return heap.snapshot(many);
  });
  const { suspects } = findSuspects(early.hold(), late.hold());
  assert.deepEqual(suspects.map(({ what }) => what), ["Large", "Small"]); // 2 MB, 20 KB and 9 KB
});

test("the calls that start the program are no suspects, what they hold is", () => {
  const heapOf = (count, isNew) => {
    const heap = new Heap();
    const rows = Array.from({ length: count }, (_, i) => heap.add("Row", { size: 100, id: 1000 + i }));
    const namespace = heap.add(DICT, { keys: { ROWS: heap.add("list", { items: rows, id: 100 }) }, id: 101 });
    heap.module("__main__", { SPACE: namespace });
    if (!isNew) return heap;
    heap.add("frame", { attributes: { namespace }, label: "tornado_rbkit.cli.main.main", file: "/srv/venv/lib/tornado_rbkit/cli/main.py", line: 60, size: 5000 });
    heap.add("frame", { label: "runpy._run_code", file: "<frozen runpy>", line: 88, size: 5000 });
    heap.add("frame", { label: "shop.serve", file: "/srv/shop.py", line: 7, size: 5000 });
    return heap;
  };
  const { suspects } = findSuspects(heapOf(10, false).snapshot(0).hold(), heapOf(400, true).snapshot(10).hold());
  assert.deepEqual(suspects.map(({ what, file }) => [what, file || null]), [["Row", null], ["serve", "/srv/shop.py"]]);
});

test("variables of functions that an exception has left are held by the exception, those of the function that caught it are not", () => {
  const heapOf = (count) => {
    const heap = new Heap();
    const server = heap.add("Server", { id: 50 });
    const main = heap.add("frame", { attributes: { server }, label: "__main__.main", id: 51 });
    const failed = Array.from({ length: count }, (_, i) => {
      const run = heap.add("frame", { attributes: { rows: heap.add("list", { items: [], size: 1000, id: 1000 + 10 * i }) }, label: "__main__.run", id: 1001 + 10 * i });
      const inner = heap.add("traceback", { attributes: { tb_frame: run }, id: 1002 + 10 * i });
      const outer = heap.add("traceback", { attributes: { tb_frame: main, tb_next: inner }, id: 1003 + 10 * i });
      return heap.add("ValueError", { attributes: { __traceback__: outer }, id: 1004 + 10 * i });
    });
    heap.module("__main__", { FAILED: heap.add("list", { items: failed, id: 52 }) });
    return heap.snapshot(count);
  };
  const [early, late] = [heapOf(10), heapOf(30)];
  const [{ what, holder, countGrowth, evidence }] = findSuspects(early.hold(), late.hold()).suspects;
  assert.deepEqual([what, holder, countGrowth], ["ValueError", "__main__.FAILED", 20]);
  assert.match(evidence.path, /^__main__\.FAILED\[\d+\] → ValueError\.__traceback__ → traceback\.tb_next → traceback\.tb_frame → run\(\) → rows$/);
  assert.equal(late.object(50, 10).heldAs, "main() → server");
});

test("the items of a set are the suspects, even if its table has just grown by a leap", () => {
  const [early, late] = [[100, 8000], [400, 32000]].map(([count, size]) => {
    const heap = new Heap();
    const items = Array.from({ length: count }, (_, i) => heap.add("str", { size: 50, id: 1000 + i }));
    heap.module("__main__", { SEEN: heap.add("set", { unnamed: items, size, id: 50 }) });
    return heap.snapshot(count / 100);
  });
  const { suspects } = findSuspects(early.hold(), late.hold());
  assert.deepEqual(suspects.map(({ what, holder, countGrowth }) => [what, holder, countGrowth]), [["str", "__main__.SEEN", 300]]);
});

test("a path names a key that all objects have, and leaves out what says nothing", () => {
  const heap = new Heap();
  const spans = [1, 2].map(() => heap.add("list", { items: [heap.add("__main__.Span"), heap.add("__main__.Span")] }));
  const locals = heap.add(DICT, { unnamed: spans.map((list) => heap.add(DICT, { keys: { spans: list } })) });
  const requests = heap.add("list", { items: [heap.add("__main__.Request")] });
  const wrapper = heap.add("function", { attributes: { requests: heap.add("cell", { attributes: { cell_contents: requests } }) }, label: "__main__.cart" });
  const cache = heap.add("functools._lru_cache_wrapper", { unnamed: [heap.add(DICT, { unnamed: [heap.add("Quote")] })] });
  heap.module("__main__", { STATE: heap.add("_thread._local", { unnamed: [locals] }), cart: wrapper, history: cache });
  const snapshot = heap.snapshot();
  const wayOf = (name) => snapshot.waysOf(name, 10).rows.map(({ text }) => text);
  assert.deepEqual(wayOf("__main__.Span"), ["__main__.STATE → thread-local['spans'][…]"]);
  assert.deepEqual(wayOf("__main__.Request"), ["__main__.cart → requests[0]"]);
  assert.deepEqual(wayOf("Quote"), ["__main__.history → lru_cache"]);
});
