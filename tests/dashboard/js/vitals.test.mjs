// The figures of the whole process: shares from growing numbers, breaks, other processes, clocks that are set back.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { Vitals } from "../../../tornado_rbkit/dashboard/src/model/vitals.js";
import { collection, handshake, numbered } from "./rbkit.mjs";

const START = 1_800_000_000; // s

const sent = (figures) => new Map(Object.entries(figures));

/** Figures of a process that uses 400 ms of CPU time and 20 ms of the collector each second. */
function run(vitals, from, seconds, rss = 1000) {
  for (let i = 0; i < seconds; i++) {
    vitals.add(from + i, sent({ process_rss: rss + i, process_cpu_ms: 400 * i, process_threads: 3, gc_pause_ms: 20 * i, count: 5 * i }));
  }
}

test("CPU and collector are shares of the time between two events", () => {
  const vitals = new Vitals();
  run(vitals, START, 3);
  assert.deepEqual(vitals.range(START, START + 10), {
    x: [START, START + 1, START + 2],
    rss: [1000, 1001, 1002],
    cpu: [null, 40, 40],
    threads: [3, 3, 3],
    gc: [null, 2, 2],
  });
  assert.deepEqual(vitals.latest, { rss: 1002, cpu: 40, threads: 3, gc: 2, runs: 5 });
});

test("each figure is optional, and an event without any is not about a process", () => {
  const vitals = new Vitals();
  vitals.add(START, sent({ count: 7, total_heap_size: 5, gc_pause_ms: 4 }));
  assert.equal(vitals.latest, null);
  vitals.add(START, sent({ process_threads: 2, process_rss: "", process_cpu_ms: null }));
  assert.deepEqual(vitals.latest, { rss: null, cpu: null, threads: 2, gc: null, runs: null });
});

test("a silence is a break, and no share spans it", () => {
  const vitals = new Vitals();
  run(vitals, START, 2);
  run(vitals, START + 60, 2);
  assert.deepEqual(vitals.range(START, START + 100).rss, [1000, 1001, null, 1000, 1001]);
  assert.deepEqual(vitals.range(START, START + 100).cpu, [null, 40, null, null, 40]);
});

test("another process, and numbers that decrease, give no negative share", () => {
  const vitals = new Vitals();
  run(vitals, START, 5);
  vitals.restart();
  run(vitals, START + 5, 2);
  vitals.add(START + 7, sent({ process_rss: 1, process_cpu_ms: 0 }));
  assert.deepEqual(vitals.range(START, START + 10).cpu, [null, 40, 40, 40, 40, null, 40, null]);
});

test("data later than a clock that was set back is dropped, so the times ascend", () => {
  const vitals = new Vitals();
  run(vitals, START + 3600, 5);
  run(vitals, START, 5);
  run(vitals, START + 2, 5);
  assert.deepEqual(vitals.times, vitals.times.toSorted((a, b) => a - b));
  assert.equal(vitals.times.length, 7);
});

test("figures of a process are part of a memory profile while they have a number of old objects; those without a process always", () => {
  for (const [facts, figures, isProfiled] of [
    [{ object_trace_enabled: 1 }, { process_rss: 9, old_objects: "" }, false], // the first comparison is not over
    [{ object_trace_enabled: 1 }, { process_rss: 9, old_objects: 7 }, true],
    [{ object_trace_enabled: 0 }, { process_rss: 9, old_objects: 7 }, true], // the handshake is older
    [null, { process_rss: 9, old_objects: 7 }, true],
    [{ object_trace_enabled: 0 }, { count: 9 }, true],
    [null, { count: 9 }, true],
  ]) {
    const session = new Session();
    if (facts) session.reply("handshake", handshake(facts));
    session.publish(collection(0, [numbered({ 0: 6, 1: START * 1000, 2: { total_heap_size: 9, ...figures } })], START * 1000));
    assert.equal(session.vitals.latest?.rss ?? null, figures.process_rss ?? null);
    assert.equal(session.timeline.range(START - 1, START + 1).first !== null, isProfiled);
  }
});

test("nothing is shown as allocated or freed while memory is not profiled", () => {
  const session = new Session();
  for (let second = 0; second < 31; second++) {
    const objects = second >= 10 && second < 20 ? 1000 : "";
    const event = numbered({ 0: 6, 1: (START + second) * 1000, 2: { total_heap_size: 1, process_cpu_ms: second, old_objects: objects } });
    session.publish(collection(second, [event], (START + second) * 1000));
  }
  const { rates, stats } = session.timeline.range(START, START + 30);
  assert.deepEqual(rates.x, Array.from({ length: 9 }, (_, i) => START + 10 + i)); // the last second is not over
  assert.deepEqual(rates.created, Array(9).fill(0));
  assert.deepEqual(stats.x, Array.from({ length: 10 }, (_, i) => START + 10 + i));
  assert.equal(session.vitals.range(START, START + 30).x.length, 31);
});
