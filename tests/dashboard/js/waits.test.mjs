// What uses the CPU, and where threads wait for one another, in samples whose truth is planted.

import assert from "node:assert/strict";
import { test } from "node:test";
import { CpuProfile } from "../../../tornado_rbkit/dashboard/src/model/cpu/profile.js";
import { findBusy, findWait } from "../../../tornado_rbkit/dashboard/src/model/cpu/waits.js";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { chance, collection, frame, handshake, sample } from "./rbkit.mjs";

const START = 1.8e12; // ms

const at = (label, line, file = "/srv/worker.py") => ({ label, file, line, definition: 1 });

/** Samples of a profile for seconds, of each thread `choose(thread)` once in a millisecond: {frames, state}. */
function record(seconds, threads, choose) {
  const profile = new CpuProfile();
  for (let ms = 0; ms < 1000 * seconds; ms++) {
    for (let thread = 0; thread < threads; thread++) {
      const found = choose(thread, ms);
      if (found) profile.add({ time: START + ms, thread: String(thread), name: `indexer-${thread}`, ...found });
    }
  }
  return profile;
}

/** Four workers of which one holds a lock over a sleep, and another sometimes computes; states as an engine reports them. */
function workers({ lock, sleep, running }) {
  const random = chance(1);
  return record(5, 4, (thread, ms) => {
    const outer = [at("worker", 37)];
    const holder = Math.floor(ms / 4) % 4;
    if (thread === holder) return { frames: [at("flush", 50), at("index", 32), ...outer], state: sleep };
    if (thread === (holder + 1) % 4 && random() < 0.1) return { frames: [random() < 0.667 ? at("normalise", 8) : at("score", 12), at("parse", 26), ...outer], state: running };
    return { frames: [at("index", 30), ...outer], state: lock };
  });
}

/** The same by the CPU clock: 10 % of one core, a fifth of it in index. */
const computing = () =>
  record(5, 4, (thread, ms) => {
    if (ms % 10 || thread !== Math.floor(ms / 10) % 4) return null;
    const number = Math.floor(ms / 10) % 10;
    return { frames: [number < 6 ? at("normalise", 8) : number < 9 ? at("score", 12) : at("index", 30), at("worker", 37)], state: "running" };
  });

test("a lock that the profiler reports is named, and the line over which it is held", () => {
  const wait = findWait(workers({ lock: "lock", sleep: "waiting", running: "running" }), null, null);
  assert.deepEqual({ ...wait, threads: Math.round(wait.threads), beyond: { ...wait.beyond, threads: Math.round(wait.beyond.threads) } }, {
    ...{ label: "index", file: "/srv/worker.py", line: 30, threads: 3, isKnown: true },
    beyond: { line: 32, threads: 1, inner: "flush", file: "/srv/worker.py", innerLine: 50 },
  });
});

test("without states of threads the lines at which they stand without computing tell it", () => {
  const wall = workers({ lock: null, sleep: null, running: null });
  assert.equal(findWait(wall, null, null), null); // they may compute there
  const wait = findWait(wall, computing(), 1);
  assert.deepEqual([wait.label, wait.line, wait.isKnown, Math.round(wait.threads), wait.beyond.line], ["index", 30, false, 3, 32]);
});

test("threads that compute, or wait for work, do not wait for one another", () => {
  const busy = record(5, 4, (thread, ms) => ({ frames: [at("crunch", 8 + ((thread + ms) % 2)), at("worker", 37)], state: null }));
  const busyCpu = record(5, 4, (thread, ms) => (ms % 4 === thread ? { frames: [at("crunch", 8), at("worker", 37)], state: "running" } : null));
  assert.equal(findWait(busy, busyCpu, 1), null);
  const library = "/usr/lib/python3.11/concurrent/futures/thread.py";
  const pool = record(5, 4, (thread) => ({ frames: thread ? [at("_worker", 81, library)] : [at("job", 3), at("_worker", 83, library)], state: "waiting" }));
  assert.equal(findWait(pool, computing(), 1), null);
  assert.equal(findWait(new CpuProfile(), null, null), null);
});

test("a lock wait is no use of the CPU", () => {
  const { functions, waiting } = findBusy(workers({ lock: "lock", sleep: "waiting", running: "running" }), null, null);
  assert.deepEqual(functions.map(({ label }) => label), ["normalise", "score"]);
  assert.ok(Math.abs(functions[0].self / (functions[0].self + functions[1].self) - 0.667) < 0.05);
  assert.deepEqual(waiting, []);
});

test("a function that mostly waits is not the busiest, although a thread that wakes up is seen to compute there", () => {
  const random = chance(2);
  const place = () => random.of([at("index", 30), at("index", 30), at("index", 30), at("normalise", 8), at("normalise", 9), at("score", 12)]);
  const cpu = record(5, 4, (thread, ms) => (ms % 80 === 20 * thread ? { frames: [place(), at("worker", 37)], state: "running" } : null));
  const known = findBusy(cpu, workers({ lock: "lock", sleep: "waiting", running: "running" }), 1);
  const guessed = findBusy(cpu, workers({ lock: null, sleep: null, running: null }), 1);
  for (const { functions, waiting } of [known, guessed]) {
    assert.deepEqual([functions.map(({ label }) => label), waiting.map(({ label }) => label)], [["normalise", "score"], ["index"]]);
  }
  assert.equal(findBusy(cpu, null, 1).functions[0].label, "index"); // nothing is known of waits
  const busyMachine = record(5, 4, (thread, ms) => (ms % 6 || thread !== ms % 4 ? null : { frames: [place(), at("worker", 37)], state: "running" }));
  const { functions } = findBusy(busyMachine, workers({ lock: null, sleep: null, running: null }), 3); // index: a fifth of a core
  assert.deepEqual(functions.map(({ label }) => label), ["normalise", "score"]);
});

test("functions that compute on all threads do not mostly wait, whatever waits for the interpreter's lock", () => {
  const wall = record(5, 8, (thread) => ({ frames: [at(`crunch${thread}`, 8)], state: null }));
  const cpu = record(5, 8, (thread, ms) => (ms % 8 === thread ? { frames: [at(`crunch${thread}`, 8)], state: "running" } : null));
  assert.equal(findBusy(cpu, wall, 1).functions.length, 8);
});

test("samples of one look that come thread by thread take no more time than there was", () => {
  const profile = new CpuProfile();
  for (let tick = 0; tick < 100; tick++) {
    for (const thread of ["1", "2", "3"]) for (let ms = 0; ms < 10; ms++) profile.add({ time: START + 10 * tick + ms, thread, frames: [at("f", 1)] });
  }
  assert.equal(profile.elapsed, 999);
  assert.equal(profile.period, 1);
});

test("each clock has a profile of its own, and samples that come late belong to the clock of their time", () => {
  const session = new Session();
  let counter = 0;
  const publish = (...samples) => session.publish(collection(counter++, samples.map(([label, ms]) => sample([frame(label)], START + ms))));
  const say = (clock, ms) => session.reply("handshake", handshake({ clock_type: clock }, START + ms));
  const labels = () => session.process.cpu.table({}).rows.map(({ label, self }) => `${label} ${self}`);
  publish(["early", 0]);
  say("wall", 5);
  publish(["sleeps", 10]);
  say("cpu", 20);
  assert.deepEqual(labels(), []);
  publish(["sleeps", 19], ["computes", 21]);
  assert.deepEqual(labels(), ["computes 1"]);
  say("cpu", 25);
  say("wall", 30);
  publish(["computes", 29], ["sleeps", 31]);
  assert.deepEqual(labels().sort(), ["early 1", "sleeps 3"]);
  say("cpu", 40);
  assert.deepEqual(labels(), ["computes 2"]);
  say("cpu", 1); // the process's time was set back
  publish(["computes", 2]);
  assert.deepEqual(labels(), ["computes 3"]);
});

test("a clock that somebody else chose is told, but not the user's own choice", () => {
  const session = new Session();
  let time = START;
  const meet = (clock) => session.reply("handshake", handshake({ clock_type: clock }, (time += 10)));
  const lines = () => session.log.lines.length;
  meet("wall");
  session.publish(collection(0, [sample([frame("sleeps")], time)]));
  session.reply("use_cpu_time", new TextEncoder().encode("ok"));
  meet("cpu");
  assert.equal(lines(), 0);
  session.publish(collection(1, [sample([frame("computes")], time + 1)]));
  session.reply("use_wall_time", new TextEncoder().encode("error:forbidden read-only"));
  meet("wall");
  assert.match(session.log.lines[0].text, /Another client chose the wall clock/);
});
