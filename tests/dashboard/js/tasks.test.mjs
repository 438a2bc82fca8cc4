// Where suspended asyncio tasks wait, in looks whose truth is planted.

import assert from "node:assert/strict";
import { test } from "node:test";
import { findTaskWaits, TaskLog } from "../../../tornado_rbkit/dashboard/src/model/cpu/tasks.js";
import { collapsed, speedscope } from "../../../tornado_rbkit/dashboard/src/model/cpu/exports.js";
import { CpuProfile } from "../../../tornado_rbkit/dashboard/src/model/cpu/profile.js";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { collection, frame, handshake, numbered, sample } from "./rbkit.mjs";

const START = 1.8e12; // ms
const ASYNCIO = "/usr/lib/python3.13/asyncio";

const at = (label, line, file = "/srv/shop.py") => ({ label, file, line, definition: 1 });
const acquire = [at("asyncio.locks.Lock.acquire", 90, `${ASYNCIO}/locks.py`), at("asyncio.locks._ContextManagerMixin.__aenter__", 20, `${ASYNCIO}/locks.py`)];
const sleep = [at("asyncio.tasks.sleep", 600, `${ASYNCIO}/tasks.py`)];
const put = [at("asyncio.queues.Queue.put", 120, `${ASYNCIO}/queues.py`)];
const get = [at("asyncio.queues.Queue.get", 160, `${ASYNCIO}/queues.py`)];
const event = [at("asyncio.locks.Event.wait", 210, `${ASYNCIO}/locks.py`)];
const select = [at("selectors.EpollSelector.select", 400, "/usr/lib/python3.13/selectors.py"), at("__main__.<module>", 50)];

const group = (tasks, frames, { awaits = "Future", names = [] } = {}) => ({ tasks, names, awaits, frames });

/** A profile of seconds with a sample each 10 ms and a look each 100 ms. */
function record(seconds, groups, { tasks = null, read = null } = {}) {
  const profile = new CpuProfile();
  for (let ms = 0; ms < 1000 * seconds; ms += 10) {
    profile.add({ time: START + ms, thread: "1", name: "MainThread", frames: select, state: "waiting" });
    const looked = typeof groups === "function" ? groups(ms / 100) : groups;
    const all = looked.reduce((sum, { tasks }) => sum + tasks, 0);
    if (ms % 100 === 0 && ms) profile.addTasks({ tasks: tasks ?? all, read: read ?? all, milliseconds: 100, groups: looked });
  }
  return profile;
}

const places = ({ waits }) => waits.map(({ tasks, at, reason, awaiter }) => [Math.round(tasks), at.label, at.line, reason, awaiter]);

test("the line is named at which most tasks wait, for what and by whom it is awaited", () => {
  const read = at("aiohttp.streams.StreamReader.read", 3, "/usr/lib/python3.13/site-packages/aiohttp/streams.py");
  const request = at("aiohttp.client.ClientSession._request", 9, "/usr/lib/python3.13/site-packages/aiohttp/client.py");
  const enter = at("aiohttp.client._Context.__aenter__", 9, "/usr/lib/python3.13/site-packages/aiohttp/client.py");
  const profile = record(5, [group(37, [read, request, enter, at("shop.fetch", 20), at("shop.handler", 41)]), group(3, [...sleep, at("shop.store", 6), at("shop.consume", 12)])]);
  assert.deepEqual(places(findTaskWaits(profile)), [
    [37, "shop.fetch", 20, "in aiohttp.client.ClientSession._request", "shop.handler"],
    [3, "shop.store", 6, "in asyncio.sleep", "shop.consume"],
  ]);
});

test("a lock is told with the line over which it is held", () => {
  const profile = record(5, [group(28, [...acquire, at("shop.reserve", 12), at("shop.get", 9)]), group(1, [...sleep, at("shop.store", 6), at("shop.reserve", 13), at("shop.get", 9)])]);
  const [wait] = findTaskWaits(profile).waits;
  assert.deepEqual([wait.reason, wait.awaiter, wait.beyond], ["for a lock", "shop.get", { line: 13, inner: "shop.store", file: "/srv/shop.py", innerLine: 6 }]);
});

test("room in a queue, a semaphore and a bare future are told", () => {
  const semaphore = at("asyncio.locks.Semaphore.acquire", 400, `${ASYNCIO}/locks.py`);
  const groups = [group(40, [...put, at("shop.produce", 7)]), group(20, [semaphore, at("shop.limited", 3)]), group(10, [at("shop.wait", 8)])];
  assert.deepEqual(places(findTaskWaits(record(5, groups))).map(([tasks, , , reason]) => [tasks, reason]), [
    [40, "for room in a queue"],
    [20, "for a semaphore"],
    [10, "for a future"],
  ]);
});

test("tasks that wait for work or for other tasks, and code of libraries alone, are no answer", () => {
  const library = at("tornado.http1connection.HTTP1Connection._read_message", 3, "/usr/lib/python3.13/site-packages/tornado/http1connection.py");
  const groups = [
    ...[group(50, [...get, at("shop.worker", 1)]), group(50, [...event, at("shop.main", 2)]), group(50, [library])],
    ...[group(1, [at("shop.main", 3)], { awaits: "_GatheringFuture" }), group(1, [at("shop.main", 4)], { awaits: "Task" })],
    group(1, [at("asyncio.taskgroups.TaskGroup.__aexit__", 4, `${ASYNCIO}/taskgroups.py`), at("shop.main", 5)]),
  ];
  assert.deepEqual(findTaskWaits(record(5, groups)), { waits: [], ready: 0, busy: 0 });
});

test("it is told for how much of the time the event loop is busy", () => {
  const loop = at("asyncio.base_events.BaseEventLoop.run_forever", 600, `${ASYNCIO}/base_events.py`);
  const profile = record(5, [group(4, [...sleep, at("shop.fetch", 20)])]);
  for (let ms = 0; ms < 5000; ms += 10) {
    const isIdle = ms % 50 === 0;
    profile.add({ time: START + ms + 5000, thread: "2", frames: isIdle ? [...select, loop] : [at("shop.render", 3), loop], state: isIdle ? "waiting" : "running" });
    if (ms % 100 === 0) profile.addTasks({ tasks: 4, read: 4, milliseconds: 100, groups: [group(4, [...sleep, at("shop.fetch", 20)])] });
  }
  assert.ok(Math.abs(findTaskWaits(profile).busy - 0.8) < 0.01);
});

test("tasks that are ready to run are told from those that wait", () => {
  const { waits, ready } = findTaskWaits(record(5, [group(12, [at("shop.fetch", 20)], { awaits: null })]));
  assert.deepEqual([waits, Math.round(ready)], [[], 12]);
});

test("the average is over all looks, also those without such tasks", () => {
  const profile = record(5, (look) => (look % 2 ? [group(10, [...sleep, at("shop.fetch", 20)])] : []));
  const [{ tasks }] = findTaskWaits(profile).waits;
  assert.ok(Math.abs(tasks - 5) < 0.2, String(tasks));
});

test("of many tasks of which a part was read, all are told", () => {
  const profile = record(5, [group(200, [...sleep, at("shop.fetch", 20)])], { tasks: 10_000, read: 200 });
  assert.deepEqual(places(findTaskWaits(profile)), [[10_000, "shop.fetch", 20, "in asyncio.sleep", null]]);
});

test("few looks are no answer", () => {
  assert.deepEqual(findTaskWaits(record(0.5, [group(9, [...sleep, at("shop.fetch", 20)])])), { waits: [], ready: 0, busy: 0 });
});

test("suspended tasks are idle: hidden by default, and worth their time together with idle threads", () => {
  const profile = record(10, [group(4, [...sleep, at("shop.fetch", 20)])]);
  assert.equal(profile.count({ idle: false }), 0);
  const rows = profile.table({ idle: true, limit: Infinity }).rows;
  const seconds = ({ total }) => Math.round((total * profile.period) / 1000);
  assert.equal(seconds(rows.find(({ label }) => label === "shop.fetch")), 40); // 4 tasks, 10 s
  assert.equal(seconds(rows.find(({ label }) => label === "selectors.EpollSelector.select")), 10);
  const inRange = profile.table({ idle: true, range: [5000, 10_000], limit: Infinity }).rows;
  assert.equal(seconds(inRange.find(({ label }) => label === "shop.fetch")), 20);
  assert.deepEqual(profile.threadList(true).map(({ id }) => id), ["1", "(suspended tasks)"]);
  assert.deepEqual(profile.threadList(false), []);
  assert.equal(Math.round(profile.count({ thread: "(suspended tasks)" }) / profile.count({ thread: "1" })), 4);
  assert.deepEqual(profile.strip(true).rows.map(({ title }) => title), ["MainThread"]);
  assert.equal(profile.samples, 1000);
});

test("tasks are told apart by name if all of their names are known", () => {
  const frames = [...sleep, at("shop.fetch", 20)];
  const profile = record(5, [group(2, frames, { names: ["reader", "writer"] }), group(5, frames, { names: ["a", "b", "c"] })]);
  const tasks = profile.taskList(true).map(({ name }) => name);
  assert.deepEqual(new Set(tasks), new Set(["(no task)", "(unnamed tasks)", "reader", "writer"]));
  assert.deepEqual(profile.taskList(false), []);
});

test("in the order of time there are threads only", () => {
  const profile = record(5, [group(400, [...sleep, at("shop.fetch", 20)])]);
  assert.equal(profile.flame({ order: "time" }).thread, "MainThread");
});

test("exported stacks are those of threads", () => {
  const profile = record(5, [group(4, [...sleep, at("shop.fetch", 20)])]);
  assert.equal(collapsed(profile), "thread 1 (MainThread);__main__.<module>;selectors.EpollSelector.select 500\n");
  assert.equal(JSON.parse(speedscope(profile, "x")).profiles.length, 1);
});

test("the oldest entries make room for new ones", () => {
  const log = new TaskLog();
  const entry = (number) => ({ elapsed: number, kind: 1, stack: number, awaits: number % 2 ? "Future" : null, tasks: 1, weight: 2 });
  const count = 2 ** 18 + 10;
  for (let number = 0; number < count; number++) log.add(entry(number));
  const found = [];
  log.each(0, Infinity, (one) => found.push(one.stack));
  assert.deepEqual([found.length, found[0], found.at(-1)], [2 ** 18, 10, count - 1]);
  const some = [];
  log.each(20, 23, (one) => some.push(one));
  assert.deepEqual(some, [entry(20), entry(21), entry(22)]);
});

const look = (fields = {}, one = {}) => {
  const frames = [frame("sleep", 0, 600), frame("fetch", 0, 20)];
  const groups = [numbered({ 25: 3, 28: ["job"], 4: "Future", 2: frames, ...one })];
  return numbered({ 0: 9, 1: START + 100, 2: [], 24: numbered({ 25: 4, 26: 4, 27: 100.5, 2: groups, ...fields }) });
};

test("a look is read from a message, and is no sample", () => {
  const session = new Session();
  session.reply("handshake", handshake());
  session.publish(collection(0, [sample([frame("main")], START), sample([frame("main")], START + 10), look()]));
  const { cpu } = session.process;
  assert.deepEqual([session.unreadable, cpu.samples, cpu.find("fetch") >= 0], [0, 2, true]);
  assert.equal(Math.round(cpu.count({ thread: "(suspended tasks)" })), 30);
});

test("a look of other types is unreadable and costs nothing else", () => {
  const odd = [
    ...[{ 25: "4" }, { 26: -1 }, { 27: "x" }, { 27: NaN }, { 2: null }, { 2: [1] }].map((fields) => look(fields)),
    ...[{ 25: 1.5 }, { 28: 1 }, { 28: [numbered({})] }, { 4: 7 }, { 2: 1 }, { 2: [1] }].map((one) => look({}, one)),
    numbered({ 0: 9, 1: START, 2: [], 24: 5 }),
  ];
  const session = new Session();
  session.publish(collection(0, [sample([frame("main")], START), ...odd, sample([frame("main")], START + 10)]));
  assert.deepEqual([session.unreadable, session.process.cpu.samples], [odd.length, 2]);
});
