// The models with arbitrary clocks, depths and numbers in the received data.

import assert from "node:assert/strict";
import { test } from "node:test";
import { collapsed, speedscope } from "../../../tornado_rbkit/dashboard/src/model/cpu/exports.js";
import { CpuProfile } from "../../../tornado_rbkit/dashboard/src/model/cpu/profile.js";
import { IdTable } from "../../../tornado_rbkit/dashboard/src/model/idtable.js";
import { Log } from "../../../tornado_rbkit/dashboard/src/worker/log.js";
import { LiveObjects } from "../../../tornado_rbkit/dashboard/src/model/objects.js";
import { EventType } from "../../../tornado_rbkit/dashboard/src/connection/protocol.js";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { IncomingSnapshot } from "../../../tornado_rbkit/dashboard/src/model/incoming.js";
import { Timeline } from "../../../tornado_rbkit/dashboard/src/model/timeline.js";
import { chance, collection, created, dump, file, encode, frame, heapObject, numbered, sample } from "./rbkit.mjs";

const START = 1_800_000_000; // s

const stats = (time) => ({ type: EventType.GC_STATS, time: time * 1000, figures: new Map([["total_heap_size", 1], ["heap_live_slots", 5]]) });

/** Ten births a second, and figures each five. */
function live(timeline, from, seconds) {
  for (let second = 0; second < seconds; second++) {
    for (let i = 0; i < 10; i++) timeline.add({ type: EventType.OBJ_CREATED, time: (from + second + i / 10) * 1000, id: i, name: "Thing" });
    if (second % 5 === 0) timeline.add(stats(from + second));
  }
}

/** Assert that the last hundred seconds are in view, as if nothing had been before. */
function assertIsInView(timeline, to) {
  const range = timeline.range(to - 100, to);
  const inView = range.rates.x.map((second, i) => [second, range.rates.created[i]]).filter(([second]) => second >= to - 100);
  assert.deepEqual(inView, Array.from({ length: 99 }, (_, i) => [to - 100 + i, 10])); // the last is not over yet
  assert.equal(range.stats.x.filter((time) => time >= to - 100).length, 20);
  for (const times of [timeline.seconds, timeline.statTimes]) assert.deepEqual(times, times.toSorted((a, b) => a - b));
  assert.ok(range.first <= to - 100);
}

for (const [name, before] of Object.entries({
  "nothing before": () => {},
  "a second that is an hour ahead": (timeline) => live(timeline, START + 3600, 1),
  "a minute that is an hour ahead": (timeline) => live(timeline, START + 3540, 60),
  "a time at the end of all days": (timeline) => live(timeline, 8.64e12, 1),
  "a clock that is set back twice": (timeline) => [7200, 3600].forEach((ahead) => live(timeline, START + ahead, 50)),
  "hours that are right, then one ahead": (timeline) => {
    live(timeline, START - 8000, 7000);
    live(timeline, START + 3600, 10);
  },
})) {
  test(`the charts show what comes after ${name}`, () => {
    const timeline = new Timeline();
    before(timeline);
    live(timeline, START, 100);
    assertIsInView(timeline, START + 100);
  });
}

test("a gap is as long as the silence around it, also where memory is not profiled", () => {
  const session = new Session();
  const publish = (counter, second, events) => session.publish(collection(counter, events, (START + second) * 1000));
  publish(0, 0, [created(1, "Thing", START * 1000)]);
  for (let second = 1; second < 100; second++) publish(second, second, []);
  publish(103, 101, []);
  assert.deepEqual(session.timeline.gaps, [[START + 99, START + 101, 3]]);
});

test("changes that are reported 38 s late are shown at their times", () => {
  const timeline = new Timeline();
  for (let second = 0; second < 60; second += 5) timeline.add(stats(START + second));
  for (let i = 0; i < 3800; i++) timeline.add({ type: EventType.OBJ_CREATED, time: (START + 20 + i / 100) * 1000, id: i, name: "Thing" });
  assert.equal(timeline.setBack, 0);
  const { x, created: made } = timeline.range(START, START + 60).rates;
  for (let second = 21; second < 55; second++) assert.equal(made[x.indexOf(START + second)], 100, `second ${second}`);
});

test("a clock that was set back is reported, and earlier data stays", () => {
  const session = new Session();
  let counter = 0;
  const publish = (second) => session.publish(collection(counter++, [created(counter, "Thing", (START + second) * 1000)], (START + second) * 1000));
  for (let second = 0; second < 50; second++) publish(second);
  publish(3600);
  publish(50);
  assert.ok(session.log.lines.some(({ text }) => text.includes("clock was set back")));
  assert.deepEqual(session.timeline.range(START, START + 60).rates.created.slice(0, 50), new Array(50).fill(1));
});

test("events that are slightly late are counted at their time", () => {
  const timeline = new Timeline();
  live(timeline, START, 20);
  timeline.add({ type: EventType.OBJ_CREATED, time: (START + 12.5) * 1000, id: 1, name: "Thing" });
  timeline.add(stats(START + 13));
  assert.equal(timeline.created[12], 11);
  assert.equal(timeline.setBack, 0);
  assert.deepEqual(timeline.statTimes, [0, 5, 10, 13, 15].map((second) => START + second));
});

test("invalid times are counted as unreadable, and block nothing", () => {
  for (const time of [NaN, Infinity, -1, 1e300, null, "now", []]) {
    const session = new Session();
    session.publish(collection(0, [created(1, "Thing", time)], time));
    for (let second = 0; second < 100; second++) {
      const events = Array.from({ length: 10 }, (_, i) => created(1000 + 10 * second + i, "Thing", (START + second + i / 10) * 1000));
      if (second % 5 === 0) events.push(numbered({ 0: 6, 1: (START + second) * 1000, 2: { total_heap_size: time } }));
      session.publish(collection(second + 1, events, (START + second) * 1000));
    }
    assert.equal(session.unreadable, 1);
    assertIsInView(session.timeline, START + 100);
  }
});

test("the trend of a class covers all of the profile in few points", () => {
  const objects = new LiveObjects();
  for (let second = 0; second < 7200; second++) {
    objects.add({ type: EventType.OBJ_CREATED, time: 1.8e12 + 1000 * second, id: second, name: second < 3600 ? "Early" : "Late" });
  }
  const rows = new Map(objects.rows({}).rows.map(({ name, trend }) => [name, trend.map(([time, live]) => [time - 1.8e9, live])]));
  const early = rows.get("Early");
  assert.ok(early.length > 50 && early.length <= 120, `${early.length} points`);
  assert.ok(early[0][0] < 120 && early.at(-1)[0] > 7000);
  assert.ok(early.every(([time, live]) => Math.abs(live - Math.min(3600, time + 1)) <= 2));
  const late = rows.get("Late");
  assert.ok(late[0][0] >= 3600 && late[0][0] < 3900 && late.every(([time, live]) => Math.abs(live - (time - 3599)) <= 2));
  assert.equal(objects.rows({}).rows.find(({ name }) => name === "Late").rate, 1);
});

test("the objects' history, rate and ages continue after the clock was set back", () => {
  const objects = new LiveObjects();
  const run = (from) => {
    for (let second = 0; second < 20; second++) {
      for (let i = 0; i < 5; i++) objects.add({ type: EventType.OBJ_CREATED, time: (from + second) * 1000, id: from + 10 * second + i, name: "Thing" });
      if (second % 6 === 0) objects.add({ type: EventType.GC_END_S, time: (from + second) * 1000 });
    }
  };
  run(START + 3600);
  const [before] = objects.rows({}).rows;
  run(START);
  const [after] = objects.rows({}).rows;
  assert.equal(after.rate, 5);
  assert.ok(after.trend.every(([time]) => time < START + 30));
  assert.ok(after.old > before.old);
});

test("the time that samples took does not grow when the clock is set back", () => {
  const cpu = new CpuProfile();
  for (const second of [3600, 3605, 0, 5]) cpu.add({ time: (START + second) * 1000, thread: "1", frames: [{ label: "f", file: "", line: 1 }] });
  assert.equal(cpu.elapsed, 10_000);
});

test("the numbers of figures, gaps and restarts are bounded", () => {
  const timeline = new Timeline();
  for (let i = 0; i < 30_000; i++) {
    timeline.add(stats(START + i / 1000));
    timeline.gap(START + (i - 1) / 1000, START + i / 1000, 1);
    timeline.restart(START + i / 1000);
  }
  assert.ok(timeline.stats.length <= 10_000 && timeline.gaps.length <= 1000 && timeline.restarts.length <= 1000);
  assert.equal(timeline.missing, 30_000);
  const session = new Session();
  session.publish(collection(0, [numbered({ 0: 6, 1: 1.8e12, 2: Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`figure${i}`, i])) })]));
  assert.deepEqual([session.timeline.lastStats.size, session.timeline.lastStats.get("(figures left out)")], [201, 800]);
});

// CPU

const stack = (depth) => Array.from({ length: depth }, (_, i) => ({ label: `f${i}`, file: "a.rb", line: i }));
const taken = (cpu, frames, thread = "1") => cpu.add({ time: 1.8e12, thread, frames });

test("stacks as deep as Ruby's, and far deeper, are walked", () => {
  const cpu = new CpuProfile();
  const depth = 50_000;
  taken(cpu, stack(depth));
  assert.equal(cpu.table({ thread: "1" }).matching, depth);
  const { callees, callers, samples } = cpu.details(1); // functions are numbered from the outermost
  assert.deepEqual([callees[0].label, callers[0].label, samples], [`f${depth - 3}`, `f${depth - 1}`, 1]);
  assert.equal(cpu.flame({}).frames.length, 2001);
  assert.equal(JSON.parse(speedscope(cpu, "x")).profiles[0].samples[0].length, depth);
  assert.equal(collapsed(cpu).split(";").length, depth + 1);
});

test("a deeply recursive function is counted once per sample", () => {
  const cpu = new CpuProfile();
  const recursion = Array.from({ length: 20_000 }, (_, i) => ({ label: i % 2 ? "odd" : "even", file: "a.rb", line: 1 }));
  taken(cpu, [{ label: "leaf", file: "a.rb", line: 9 }, ...recursion]);
  const even = cpu.functions.findIndex(({ label }) => label === "even");
  assert.deepEqual(cpu.details(even).callees.map(({ label, samples }) => [label, samples]).sort(), [["leaf", 1], ["odd", 1]]);
  assert.deepEqual(cpu.table({ thread: "1" }).rows.map(({ label, total }) => [label, total]).sort(), [["even", 1], ["leaf", 1], ["odd", 1]]);
});

test("hundreds of thousands of functions beside each other are exported, as many as are kept; the others are counted", () => {
  const cpu = new CpuProfile();
  for (let i = 0; i < 130_000; i++) taken(cpu, [{ label: `f${i}`, file: "a.rb", line: 1 }]);
  taken(cpu, [{ label: "f7", file: "a.rb", line: 1 }]);
  assert.deepEqual([cpu.samples, cpu.omitted, cpu.functions.length], [100_001, 30_000, 100_000]);
  assert.equal(collapsed(cpu).split("\n").length, 100_001);
  assert.equal(cpu.flame({}).total, 100_001);
  assert.deepEqual(cpu.table({ filter: "f7" }).rows.find(({ label }) => label === "f7").total, 2);
});

test("the number of lines is bounded", () => {
  const cpu = new CpuProfile();
  for (let line = 0; line < 1_100_000; line++) taken(cpu, [{ label: "f", file: "a.rb", line }]);
  assert.deepEqual([cpu.samples, cpu.omitted, cpu.stacks.frames.length], [1_000_000, 100_000, 1_000_000]);
});

test("with a thread per request, the busiest are listed, the others merged, and no sample is lost", () => {
  const cpu = new CpuProfile();
  const random = chance(30);
  const expected = new Map();
  const add = (label) => expected.set(label, (expected.get(label) ?? 0) + 1);
  for (let request = 0; request < 30_000; request++) {
    for (const thread of ["main", `request-${request}`]) {
      if (thread === "main" && random() < 0.5) continue;
      const leaf = `f${Math.floor(random() * 10)}`;
      taken(cpu, [leaf, "handle"].map((label) => ({ label, file: "a.rb", line: 1 })), thread);
      add(leaf);
    }
    if (request % 100 === 0) taken(cpu, [{ label: "poll", file: "a.rb", line: 1 }], `worker-${(request / 100) % 60}`), add("poll");
  }
  const threads = cpu.threadList();
  assert.equal(threads.length, 51);
  assert.equal(threads[0].id, "main");
  assert.equal(threads.reduce((sum, { samples }) => sum + samples, 0), cpu.samples);
  assert.ok(cpu.threads.byId.size <= 200);
  const count = (thread) => new Map(cpu.table({ thread, limit: 100 }).rows.filter(({ self }) => self).map(({ label, self }) => [label, self]));
  assert.deepEqual(count(null), new Map([...expected].sort((a, b) => b[1] - a[1])));
  const summed = new Map();
  for (const { id } of threads) for (const [label, self] of count(id)) summed.set(label, (summed.get(label) ?? 0) + self);
  assert.deepEqual(new Map([...summed].sort()), new Map([...expected].sort()));
  for (const { id, samples } of threads) assert.equal(cpu.flame({ thread: id }).total, samples, id);
  const weights = JSON.parse(speedscope(cpu, "x")).profiles.map(({ weights }) => weights.reduce((sum, weight) => sum + weight, 0));
  assert.equal(weights.reduce((sum, weight) => sum + weight, 0), cpu.samples);
  assert.ok(weights.length <= 201);
});

test("a busy thread that starts late gets into the list, among any number of short threads", () => {
  const cpu = new CpuProfile();
  const at = (thread, label = "f") => taken(cpu, [{ label, file: "a.rb", line: 1 }], thread);
  for (let i = 0; i < 300; i++) for (let n = 0; n < 10; n++) at(`early-${i}`);
  for (let i = 0; i < 1000; i++) {
    at("late");
    for (let n = 0; n < 5; n++) at(`request-${i}-${n}`);
  }
  const [first] = cpu.threadList();
  assert.deepEqual([first.id, first.samples], ["late", 1000]);
});

// Objects and snapshots

test("the number of classes is bounded, and the others are counted together", () => {
  const objects = new LiveObjects();
  for (let id = 0; id < 25_000; id++) objects.add({ type: EventType.OBJ_CREATED, time: 1.8e12, id, name: `Class${id}` });
  for (let id = 20_000; id < 21_000; id++) objects.add({ type: EventType.OBJ_DESTROYED, time: 1.8e12, id });
  const { rows, matching, live } = objects.rows({ limit: 1 });
  assert.deepEqual([rows[0].name, rows[0].live, matching, live], ["(other classes)", 4000, 20_001, 24_000]);
});

test("a table of ids has more entries than a Map can", () => {
  const count = 2 ** 24 + 1000;
  const ids = new IdTable(count);
  for (let i = 0; i < count; i++) ids.set(0x7f0000000000 + 16 * i, i);
  assert.equal(ids.size, count);
  for (const i of [0, 1, 2 ** 24 - 1, 2 ** 24, count - 1]) assert.equal(ids.get(0x7f0000000000 + 16 * i), i);
  assert.equal(ids.get(8), -1);
});

test("a table of ids behaves like a Map for any insertions and removals", () => {
  const random = chance(7);
  const [ids, expected] = [new IdTable(0), new Map()];
  for (let i = 0; i < 50_000; i++) {
    const id = random.of([1, 16, 2 ** 33, -8]) * Math.floor(random() * 3000);
    if (random() < 0.6) ids.set(id, i), expected.set(id, i);
    else ids.delete(id), expected.delete(id);
  }
  assert.equal(ids.size, expected.size);
  for (const [id, number] of expected) assert.equal(ids.get(id), number);
});

test("objects that do not fit into a snapshot are reported, and its columns stay equally long", () => {
  const objects = Array.from({ length: 100 }, (_, id) => ({ id, name: "A", references: [(id + 1) % 100], file: "", line: 0, size: 8 }));
  const incoming = new IncomingSnapshot("1", 1.8e12, { objects: 250, references: 230 });
  for (let part = 0; part < 4; part++) incoming.add({ expected: 400, objects, unreadable: 0 }, [new Uint8Array()]);
  assert.ok(incoming.complete);
  const snapshot = incoming.finish(1);
  assert.deepEqual([snapshot.objects, snapshot.omitted], [230, 170]);
  for (const column of ["ids", "classes", "sizes", "files", "lines", "positioned", "labels"]) assert.equal(snapshot[column].length, 230, column);
});

test("a part for which the browser has no memory is left out whole", () => {
  const incoming = new IncomingSnapshot("1", 1.8e12);
  const one = { id: 1, name: "A", references: [2], file: "", line: 0, size: 8 };
  incoming.add({ expected: 3, objects: [one], unreadable: 0 }, [new Uint8Array()]);
  const allocate = Float64Array.prototype.set;
  Float64Array.prototype.set = () => {
    throw new RangeError("Array buffer allocation failed");
  };
  try {
    incoming.add({ expected: 3, objects: [{ ...one, id: 2 }], unreadable: 0 }, [new Uint8Array()]);
  } finally {
    Float64Array.prototype.set = allocate;
  }
  incoming.add({ expected: 3, objects: [{ ...one, id: 3 }], unreadable: 0 }, [new Uint8Array()]);
  const snapshot = incoming.finish(1);
  assert.deepEqual([[...snapshot.ids], snapshot.omitted], [[1, 3], 1]);
});

test("the largest objects of a class are the ones that a full sort would give", () => {
  const random = chance(3);
  const objects = Array.from({ length: 35_000 }, (_, id) => ({ id, name: random.of(["A", "B"]), references: [], file: "", line: 0, size: Math.floor(random() * 500) }));
  const incoming = new IncomingSnapshot("1", 1.8e12);
  incoming.add({ expected: objects.length, objects, unreadable: 0 }, [new Uint8Array()]);
  const { matching, rows } = incoming.finish(1).objectsOf("class", "A", null, 100);
  const expected = objects.filter(({ name }) => name === "A").sort((a, b) => b.size - a.size || a.id - b.id);
  assert.equal(matching, expected.length);
  assert.deepEqual(rows.map(({ id }) => id), expected.slice(0, 100).map(({ id }) => id));
});

test("a path through a linked list of a hundred thousand is shown by its ends", () => {
  const count = 100_000;
  const objects = Array.from({ length: count }, (_, id) => ({ id, name: "Node", references: id + 1 < count ? [id + 1] : [], file: "", line: 0, size: 8 }));
  const incoming = new IncomingSnapshot("1", 1.8e12);
  incoming.add({ expected: count, objects, unreadable: 0 }, [new Uint8Array()]);
  const { path } = incoming.finish(1).object(count - 1, 100);
  assert.deepEqual(path.steps.map(({ id }) => id), [...Array.from({ length: 20 }, (_, i) => i), ...Array.from({ length: 20 }, (_, i) => count - 20 + i)]);
  assert.equal(path.omitted, count - 40);
});

test("a snapshot is given up after a minute in which the page looked each second, however long the page was paused", (t) => {
  let clock = 0;
  t.mock.method(performance, "now", () => clock);
  const session = new Session();
  session.publish(collection(0, [dump(1, 2, [heapObject(1, "A")])]));
  clock += 3600 * 1000;
  session.checkIncoming(); // before what arrived meanwhile is read
  session.publish(collection(1, [dump(1, 2, [heapObject(2, "A")])]));
  session.publish(collection(2, [dump(2, 2, [heapObject(1, "A")])]));
  for (let second = 0; second < 59; second++) session.checkIncoming();
  assert.deepEqual(session.snapshots.map(({ objects }) => objects), [2]);
  session.checkIncoming();
  assert.deepEqual(session.snapshots.map(({ objects }) => objects), [2, 1]);
});

test("the number of incomplete snapshots is bounded", () => {
  const session = new Session();
  for (let i = 0; i < 1000; i++) session.publish(collection(i, [dump(i, 2, [heapObject(1, "A")])]));
  assert.ok(session.incoming.size <= 8);
  assert.equal(session.snapshots.length, 30);
  assert.ok(session.log.lines.length <= 50 && session.log.leftOut > 1000);
});

// Counters and the log

test("two publishers at one endpoint cause one restart and one log line", () => {
  const session = new Session();
  for (let i = 0; i < 1000; i++) {
    session.publish(collection(1000 + i, [created(i, "Here")]));
    session.publish(collection(i, [created(100_000 + i, "There")]));
  }
  assert.equal(session.processes.length, 2);
  assert.equal(session.log.lines.length, 2);
  assert.match(session.log.lines[1].text, /message_counter keeps decreasing/);
  assert.ok(session.timeline.missing <= 1000);
  const names = session.process.objects.rows({}).rows.map(({ name, created }) => [name, created]);
  assert.deepEqual(names, [["There", 1000], ["Here", 999]]);
});

test("a publisher whose counter never changes is reported once", () => {
  const session = new Session();
  for (let i = 0; i < 1000; i++) session.publish(collection(0, [created(i, "Thing")]));
  assert.equal(session.processes.length, 2);
  assert.equal(session.process.objects.rows({}).live, 999);
  assert.equal(session.log.lines.length, 2);
});

test("restarts in a file are detected by its own times, not by the speed of reading", async () => {
  const records = [];
  for (const [process, at] of [[1, 0], [2, 100], [3, 200]]) {
    for (let i = 0; i < 10; i++) records.push(encode([at + i, 1, null, collection(i, [created(i, `Process${process}`)])]));
  }
  const session = new Session();
  await session.load(file("restarts.rbkit", ...records), () => {});
  assert.deepEqual(session.processes.map(({ objects }) => objects.rows({}).rows.map(({ name }) => name)), [["Process1"], ["Process2"], ["Process3"]]);
});

test("restarts are detected by the times of the messages, which arrive at once after a pause", () => {
  const session = new Session();
  for (const [process, at] of [[1, 0], [2, 5], [3, 10], [4, 7]]) {
    for (let i = 0; i < 10; i++) session.publish(collection(i, [created(i, `Process${process}`)], (START + at) * 1000));
  }
  assert.deepEqual(session.processes.map(({ objects }) => objects.rows({}).rows.map(({ name }) => name)), [["Process1"], ["Process2"], ["Process3"], ["Process4"]]);
});

test("losses are detected again after the bridge reported a restart", () => {
  const session = new Session();
  for (const counter of [5, 0, 5, 0]) session.publish(collection(counter, [created(counter, "Thing")]));
  session.notice("server", "restarted", new Uint8Array());
  const { missing } = session.timeline;
  for (const counter of [10, 13]) session.publish(collection(counter, [created(counter, "Thing")]));
  assert.equal(session.timeline.missing - missing, 2);
});

test("the log keeps the newest lines, and its rate is limited", () => {
  const log = new Log();
  for (let i = 0; i < 1000; i++) log.add(`fast ${i}`, 100);
  assert.deepEqual([log.lines.length, log.leftOut], [10, 990]);
  for (let i = 0; i < 100; i++) log.add(`slow ${i}`, 200 + i);
  assert.deepEqual([log.lines.length, log.leftOut, log.lines.at(-1).text, log.lines.at(-1).number], [50, 990, "slow 99", 110]);
});

test("names are cut where they are longer than a page can show", () => {
  const session = new Session();
  session.publish(collection(0, [created(1, "x".repeat(1_000_000)), sample([frame("y".repeat(1_000_000))])]));
  const [{ name }] = session.process.objects.rows({}).rows;
  assert.deepEqual([name.length, name.endsWith("…"), session.process.cpu.functions[0].label.length], [501, true, 501]);
});
