// The page of all targets: states, order, filter, the history of the figures, and documents that are not the server's.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Fleet, HISTORY_SECONDS } from "../../../tornado_rbkit/dashboard/src/model/fleet.js";

const all = { filter: "", sort: "name", descending: false, limit: 1000 };

/** A target as the server describes it: its process uses 250 ms of CPU time a second and grows by 10 bytes. */
function row(name, second, more = {}) {
  return { name, process: `${name}.rb`, pid: 7, state: "idle", trouble: null, viewers: 0, recording: [], bytes_sent: 0, rss: 1000 + 10 * second, cpu_ms: 250 * second, at: 500 + second, ...more };
}

function documentOf(second, rows, hosts = []) {
  return { now: 90 + second, hosts, targets: rows, left_out: 0 };
}

function names(fleet, query = {}) {
  return fleet.rows({ ...all, ...query }).rows.map(({ name }) => name);
}

test("CPU and bytes are rates between two documents, by the clocks of the process's host and of the server", () => {
  const fleet = new Fleet();
  fleet.update(documentOf(0, [row("a", 0)]), 10);
  assert.deepEqual([fleet.targets[0].cpu, fleet.targets[0].rss, fleet.targets[0].rate], [null, 1000, null]);
  fleet.update(documentOf(2, [row("a", 2, { bytes_sent: 3_000_000 })]), 17); // whenever the document arrives
  assert.deepEqual([fleet.targets[0].cpu, fleet.targets[0].rss, fleet.targets[0].rate], [25, 1020, 1_500_000]);
});

test("a figure that was read once is one point, however often it is sent, and soon no longer the present", () => {
  const fleet = new Fleet();
  for (let second = 0; second < 12; second++) fleet.update(documentOf(second, [row("a", Math.min(second, 3))]), second);
  assert.equal(fleet.targets[0].history.length, 4);
  assert.equal(fleet.targets[0].rss, null);
  assert.equal(fleet.targets[0].cpu, null);
});

test("the history ends after two minutes, and is bounded however fast documents arrive", () => {
  const fleet = new Fleet();
  for (let second = 0; second < 300; second++) fleet.update(documentOf(second, [row("a", second)]), second);
  assert.equal(fleet.targets[0].history.length, HISTORY_SECONDS);
  assert.equal(fleet.targets[0].history[0].time, 300 - HISTORY_SECONDS);
  for (let i = 0; i < 5000; i++) fleet.update(documentOf(300 + i, [row("a", 300 + i)]), 300);
  assert.ok(fleet.targets[0].history.length <= 2 * HISTORY_SECONDS);
});

test("another process begins another history, a counter that falls is no rate, and a target that left is forgotten", () => {
  const fleet = new Fleet();
  fleet.update(documentOf(0, [row("a", 50, { bytes_sent: 9 })]), 0);
  fleet.update(documentOf(1, [row("a", 1, { pid: 8 })]), 1);
  assert.deepEqual(fleet.targets[0].history, [{ time: 1, cpu: null, rss: 1010 }]);
  assert.equal(fleet.targets[0].rate, null);
  fleet.update(documentOf(2, [row("a", 0, { pid: 8 })]), 2); // its host was booted
  assert.equal(fleet.targets[0].cpu, null);
  fleet.update(documentOf(3, []), 3);
  fleet.update(documentOf(4, [row("a", 4, { pid: 8 })]), 4);
  assert.equal(fleet.targets[0].history.length, 1);
});

test("no share of CPU time spans a silence", () => {
  const fleet = new Fleet();
  fleet.update(documentOf(0, [row("a", 0)]), 0);
  fleet.update(documentOf(60, [row("a", 60)]), 60);
  assert.deepEqual(fleet.targets[0].history.map(({ cpu }) => cpu), [null, null]);
});

test("a host that is not here has the word on the state of its targets, and comes first", () => {
  const hosts = ["here", "late", "frozen", "gone"].map((state, i) => ({ name: `h${i}`, state, seconds: 3, targets: 1 }));
  const fleet = new Fleet();
  fleet.update(documentOf(0, hosts.map(({ name }) => row(`${name}~puma`, 0, { host: name, state: "connected" })), hosts), 0);
  assert.deepEqual(fleet.hosts.map(({ state }) => state), ["gone", "frozen", "late", "here"]);
  assert.deepEqual(fleet.targets.map(({ state }) => state), ["connected", "late", "frozen", "gone"]);
});

test("every column sorts both ways, numbers in names as numbers, and what is not known is last in both", () => {
  const fleet = new Fleet();
  const rows = (second) => [
    row("web-10", second, { viewers: 2, cpu_ms: 900 * second, recording: ["cpu"], bytes_sent: 5 * second }),
    row("web-9", second, { viewers: 1, cpu_ms: 100 * second, trouble: "no rbkit server", process: "a" }),
    row("db", second, { viewers: 9, rss: null, cpu_ms: null, state: "connected", process: null }),
  ];
  for (const second of [0, 1]) fleet.update(documentOf(second, rows(second)), second);
  assert.deepEqual(names(fleet), ["db", "web-9", "web-10"]);
  assert.deepEqual(names(fleet, { descending: true }), ["web-10", "web-9", "db"]);
  assert.deepEqual(names(fleet, { sort: "cpu", descending: true }), ["web-10", "web-9", "db"]);
  assert.deepEqual(names(fleet, { sort: "cpu" }), ["web-9", "web-10", "db"]);
  assert.deepEqual(names(fleet, { sort: "viewers", descending: true }), ["db", "web-10", "web-9"]);
  assert.deepEqual(names(fleet, { sort: "state" })[0], "web-9", "trouble is first");
  assert.deepEqual(names(fleet, { sort: "recording" })[0], "web-10");
  assert.deepEqual(names(fleet, { sort: "rate", descending: true })[0], "web-10");
  assert.deepEqual(names(fleet, { sort: "process" }), ["web-9", "web-10", "db"]);
  assert.deepEqual(names(fleet, { sort: "rss" }).at(-1), "db");
  assert.deepEqual(names(fleet, { sort: "constructor" }), ["db", "web-9", "web-10"], "a sort of a forged address is by name");
});

test("a filter finds all its words in any of the texts, whatever their case", () => {
  const fleet = new Fleet();
  const hosts = [{ name: "web-2", state: "frozen", seconds: 1, targets: 1 }];
  fleet.update(documentOf(0, [row("web-1~puma", 0, { pid: 4711 }), row("web-2~puma", 0, { host: "web-2" }), row("db~x", 0, { recording: ["memory"] })], hosts), 0);
  assert.deepEqual(names(fleet, { filter: "PUMA web-1" }), ["web-1~puma"]);
  assert.deepEqual(names(fleet, { filter: "frozen" }), ["web-2~puma"]);
  assert.deepEqual(names(fleet, { filter: " 4711 " }), ["web-1~puma"]);
  assert.deepEqual(names(fleet, { filter: "memory" }), ["db~x"]);
  assert.deepEqual(names(fleet, { filter: "puma db" }), []);
  assert.equal(fleet.rows({ ...all, limit: 1 }).matching, 3);
  assert.equal(fleet.rows({ ...all, limit: 1 }).rows.length, 1);
});

test("two hundred targets keep their histories for two minutes", () => {
  const fleet = new Fleet();
  for (let second = 0; second < HISTORY_SECONDS; second++) {
    fleet.update(documentOf(second, Array.from({ length: 200 }, (_, i) => row(`h${i % 10}~puma-${i}`, second))), second);
  }
  assert.equal(fleet.targets.length, 200);
  assert.ok(fleet.targets.every(({ history, cpu }) => history.length === HISTORY_SECONDS && cpu === 25));
});

test("no document throws, and nothing in one is without bounds", () => {
  const odd = [null, undefined, 7, "x", [], {}, NaN, -1, Infinity, "\u202e<b>", { toString: null }, [[]], "a".repeat(100_000)];
  const fleet = new Fleet();
  for (const value of odd) {
    fleet.update(value, 0);
    fleet.update({ now: value, hosts: value, targets: value, left_out: value }, 0);
    fleet.update({ now: 1, hosts: [value], targets: [value] }, 0);
    const keys = ["host", "process", "pid", "state", "trouble", "viewers", "recording", "bytes_sent", "rss", "cpu_ms", "at"];
    fleet.update({ now: 1, hosts: [{ name: value, state: value, seconds: value, targets: value }], targets: keys.map((key, i) => ({ ...row(`t${i}`, 0), [key]: value })) }, 0);
    assert.equal(fleet.targets.length, keys.length);
    fleet.rows({ ...all, sort: "cpu" });
    fleet.update({ targets: keys.map(() => row("the same", 0)) }, 0);
    assert.equal(fleet.targets.length, 1);
  }
  fleet.update(documentOf(0, Array.from({ length: 5_000 }, (_, i) => row(`t${i}`, 0, { process: "x".repeat(10_000), recording: Array(999).fill("cpu") })), Array(5_000).fill({ name: "h" })), 0);
  assert.ok(fleet.targets.length <= 2000 && fleet.hosts.length <= 1024);
  assert.ok(fleet.targets[0].process.length <= 300 && fleet.targets[0].recording.length <= 3);
  fleet.update(documentOf(0, [row("__proto__", 0), row("constructor", 0)]), 0);
  assert.deepEqual(names(fleet), ["__proto__", "constructor"]);
});
