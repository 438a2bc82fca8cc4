// The CPU profile: flame graph and tables from samples.

import assert from "node:assert/strict";
import test from "node:test";
import { collapsed, speedscope } from "../../../tornado_rbkit/dashboard/src/model/cpu/exports.js";
import { CpuProfile } from "../../../tornado_rbkit/dashboard/src/model/cpu/profile.js";
import { isWaiting, kindOf } from "../../../tornado_rbkit/dashboard/src/model/cpu/functions.js";
import { TimeChoice } from "../../../tornado_rbkit/dashboard/src/views/cpu/range.js";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { chance, collection, frame, handshake, sample as packed } from "./rbkit.mjs";

/** Return a sample; its stack is given from the outside in, as "label" or [label, file, line]. */
function sample(time, thread, ...stack) {
  const frames = stack.map((one) => (Array.isArray(one) ? one : [one, "/srv/shop.py", 3]));
  return { time, thread, frames: frames.map(([label, file, line]) => ({ label, file, line, thread })).reverse() };
}

function profile(...stacks) {
  const cpu = new CpuProfile();
  stacks.forEach((stack, i) => cpu.add(sample(i, "1", ...stack)));
  return cpu;
}

/** Return the frames by their path of names: {value, self}. */
function graph({ frames }) {
  const paths = [];
  for (const { name, parent } of frames) paths.push(parent === null ? name : `${paths[parent]}/${name}`);
  return Object.fromEntries(frames.map(({ value, self }, i) => [paths[i], [value, self]]));
}

/** Assert that each frame is as large as what it calls, what was cut and its own samples together. */
function assertWhole({ frames }) {
  const inside = frames.map(() => 0);
  for (const { parent, value } of frames) if (parent !== null) inside[parent] += value;
  frames.forEach(({ name, value, self, cut }, i) => assert.equal(cut ? self : inside[i] + self, value, name));
}

test("no sample is missing from a flame graph: cut frames are shown as one frame", () => {
  const random = chance(9);
  for (const [samples, names, depth] of [[50, 3, 6], [3000, 9, 12], [9000, 40, 5], [1, 1, 9000]]) {
    const cpu = new CpuProfile();
    for (let n = 0; n < samples; n++) {
      const wait = random() < 0.3 ? [["threading.Condition.wait", "/usr/lib/python3.11/threading.py", 327]] : [];
      const stack = Array.from({ length: 1 + Math.floor(random() * depth) }, () => `f${Math.floor(random() ** 2 * names)}`);
      cpu.add(sample(n, random.of(["1", "2"]), ...(samples === 1 ? Array(depth).fill("f") : stack), ...wait));
    }
    for (const idle of [true, false]) {
      for (const thread of [null, "1", "2"]) {
        const whole = cpu.flame({ thread, idle });
        assertWhole(whole);
        const deep = whole.frames.at(-1);
        const path = [];
        for (let one = deep.cut ? whole.frames[deep.parent] : deep; one.parent !== null; one = whole.frames[one.parent]) path.unshift(one.fn);
        const zoomed = cpu.flame({ thread, idle, path });
        assert.equal(zoomed.zoom, path.length);
        assertWhole({ frames: zoomed.frames.slice(zoomed.zoom).map((one, i) => ({ ...one, parent: i ? one.parent - zoomed.zoom : null })) });
      }
    }
  }
});

test("a graph with too many frames has a frame for the ones that are not drawn", () => {
  const cpu = profile(...Array.from({ length: 3000 }, (_, n) => ["main", `f${n}`]), ...Array(1500).fill(["main", "hot"]));
  const { frames } = cpu.flame({});
  const cut = frames.find((frame) => frame.cut);
  assert.equal(cut.name, "3000 frames too small to draw"); // each a 4,500th
  assert.equal(cut.value, 3000);
  assert.equal(frames[cut.parent].name, "main");
});

test("the samples of waiting threads are left out, or not", () => {
  const wait = ["threading.Condition.wait", "/usr/lib/python3.11/threading.py", 327];
  const cpu = profile(["main", "work"], ["main", "take", wait], ["main", "take", wait], ["main", "take"]);
  assert.deepEqual(graph(cpu.flame({ idle: false })), { all: [2, 0], "all/main": [2, 0], "all/main/work": [1, 1], "all/main/take": [1, 1] });
  assert.deepEqual(graph(cpu.flame({}))["all/main/take"], [3, 1]);
  const counts = (query) => Object.fromEntries(cpu.table(query).rows.map(({ label, self, total }) => [label, [self, total]]));
  assert.deepEqual(counts({ idle: false }), { work: [1, 1], take: [1, 1], main: [0, 2] });
  assert.deepEqual(counts({ idle: false, thread: "1" }), counts({ idle: false }));
  assert.deepEqual(counts({})["threading.Condition.wait"], [2, 2]);
  assert.deepEqual(cpu.threadList(false), [{ id: "1", title: "1", samples: 2 }]);
  const take = cpu.functions.findIndex(({ label }) => label === "take");
  assert.deepEqual(cpu.details(take, { idle: false }).callees, []);
  assert.equal(cpu.details(take).callees[0].samples, 2);
});

test("functions in which threads wait", () => {
  for (const [label, file] of [
    ["threading.Condition.wait", "/usr/lib/python3.11/threading.py"],
    ["selectors.EpollSelector.select", "C:\\Python311\\Lib\\selectors.py"],
    ["concurrent.futures.thread._worker", "/usr/lib/python3.11/concurrent/futures/thread.py"],
    ["Kernel#sleep", "<cfunc>"],
    ["IO.select", "<cfunc>"],
  ]) assert.ok(isWaiting(label, file), label);
  for (const [label, file] of [["wait", "/srv/shop.py"], ["threading.Thread.run", "/usr/lib/python3.11/threading.py"], ["Kernel#loop", "<cfunc>"]]) {
    assert.ok(!isWaiting(label, file), label);
  }
});

test("import machinery and the start of the program are folded into one frame each", () => {
  const load = (name) => [`importlib._bootstrap.${name}`, "<frozen importlib._bootstrap>", 1];
  const start = ["runpy._run_code", "<frozen runpy>", 88];
  const cli = ["tornado_rbkit.cli.main.main", "/venv/lib/python3.11/site-packages/tornado_rbkit/cli/main.py", 5];
  const script = ["tornado-rbkit.<module>", "/venv/bin/tornado-rbkit", 8];
  const cpu = profile([script, cli, start, "main", load("_find_and_load"), load("_load_unlocked"), "module", load("_find_and_load")], [start, "main"]);
  assert.deepEqual(graph(cpu.flame({})), {
    all: [2, 0],
    "all/(program start)": [2, 0],
    "all/(program start)/main": [2, 1],
    "all/(program start)/main/(import machinery)": [1, 0],
    "all/(program start)/main/(import machinery)/module": [1, 0],
    "all/(program start)/main/(import machinery)/module/(import machinery)": [1, 1],
  });
  assert.deepEqual(cpu.table({}).rows.map(({ label, self, total }) => [label, self, total]), [["main", 1, 2], ["(import machinery)", 1, 1], ["(program start)", 0, 2], ["module", 0, 1]]);
  assert.match(collapsed(cpu), /tornado-rbkit.<module>;tornado_rbkit.cli.main.main;runpy._run_code;main;importlib._bootstrap._find_and_load;importlib/);
  const fold = cpu.functions.findIndex(({ label }) => label === "(import machinery)");
  assert.deepEqual(cpu.details(fold).lines, []);
  assert.deepEqual(cpu.details(fold).callers.map(({ label }) => label), ["main"]);
});

test("lambdas of different lines are different functions", () => {
  const lambda = (line) => ["shop.<lambda>", "/srv/shop.py", line];
  const cpu = profile(["main", lambda(6)], ["main", lambda(7)], ["main", lambda(7)], ["main", ["f", "/srv/shop.py", 1]], ["main", ["f", "/srv/shop.py", 2]]);
  assert.deepEqual(Object.keys(graph(cpu.flame({}))).sort(), ["all", "all/main", "all/main/f", "all/main/shop.<lambda>:6", "all/main/shop.<lambda>:7"]);
});

test("blocks of one file are different functions, in exports too", () => {
  const route = (line, file = "/srv/app.rb") => ["block in <main>", file, line];
  const cpu = profile([route(3)], [route(9)], [route(9)], [route(9, "/srv/admin.rb")], [["block (2 levels) in <main>", "/srv/app.rb", 10]]);
  assert.deepEqual(cpu.table({}).rows.map(({ label, file, line, total }) => [label, file, line, total]).sort(), [
    ["block (2 levels) in <main>", "/srv/app.rb", 10, 1],
    ["block in <main>", "/srv/admin.rb", 9, 1],
    ["block in <main>", "/srv/app.rb", 3, 1],
    ["block in <main>", "/srv/app.rb", 9, 2],
  ]);
  assert.match(collapsed(cpu), /^thread 1;block in <main> \(\/srv\/app.rb:9\) 2$/m);
});

test("the matched share counts each sample once, also with recursion", () => {
  const cpu = profile(["main", "find", "find", "x"], ["main", "x"], ["main", "find"], ["find", "x"]);
  assert.equal(cpu.flame({ search: "FIND" }).matched, 3);
  assert.equal(cpu.flame({ search: "shop.py" }).matched, 4);
  assert.equal(cpu.flame({ search: "nothing" }).matched, 0);
  const main = cpu.functions.findIndex(({ label }) => label === "main");
  assert.equal(cpu.flame({ search: "find", path: [main] }).matched, 2);
  assert.equal(cpu.flame({ search: "main", path: [main] }).matched, 3);
});

test("the period is that of the busiest thread, without its pauses", () => {
  const cpu = new CpuProfile();
  assert.equal(cpu.period, null);
  for (let n = 0; n < 100; n++) cpu.add(sample(1000 + 2 * n, "busy", "main"));
  for (let n = 0; n < 100; n++) cpu.add(sample(60_000 + 2 * n, "busy", "main"));
  for (let n = 0; n < 10; n++) cpu.add(sample(1000 + 30 * n, "rare", "main"));
  assert.equal(cpu.period, 2);
});

test("the kind of code that a file has", () => {
  for (const [file, kind] of [
    ["/srv/shop.py", "own"],
    ["/venv/lib/python3.11/site-packages/tornado/web.py", "library"],
    ["/usr/lib/ruby/gems/3.1.0/gems/rack-2.2.4/lib/rack.rb", "library"],
    ["/venv/bin/gunicorn", "library"],
    ["C:\\venv\\Scripts\\gunicorn.exe\\__main__.py", "library"],
    ["/srv/bin/shop.py", "own"],
    ["/usr/lib/python3.11/threading.py", "standard"],
    ["<frozen importlib._bootstrap>", "standard"],
    ["/usr/lib/ruby/3.1.0/set.rb", "standard"],
    ["C:\\Python311\\Lib\\queue.py", "standard"],
    ["<cfunc>", "native"],
    ["", "native"],
  ]) assert.equal(kindOf(file), kind, file);
});

// What our profiler adds to samples

/** Return a sample with more than its stack, see `Sample`. */
const told = (time, thread, facts, ...stack) => ({ ...sample(time, thread, ...stack), ...facts });

test("threads have their names, the main thread is first, and a thread without a name has its id", () => {
  const cpu = new CpuProfile();
  for (let n = 0; n < 5; n++) cpu.add(told(n, "7", { name: "worker" }, "f"));
  cpu.add(told(5, "1", { name: "MainThread" }, "f"));
  cpu.add(sample(6, "9", "f"));
  assert.deepEqual(cpu.threadList().map(({ id, title }) => [id, title]), [["1", "MainThread"], ["7", "worker"], ["9", "9"]]);
});

test("a told state goes before the rule for functions that wait", () => {
  const cpu = new CpuProfile();
  const wait = ["threading.Condition.wait", "/usr/lib/python3.11/threading.py", 327];
  cpu.add(told(0, "1", { state: "waiting" }, "main", "sleep"));
  cpu.add(told(1, "1", { state: "running" }, "main", wait));
  cpu.add(told(2, "1", { state: "lock" }, "main", wait));
  cpu.add(told(3, "1", { state: "gc" }, "main", "work"));
  assert.deepEqual(graph(cpu.flame({ idle: false })), {
    all: [3, 0],
    "all/main": [3, 0],
    "all/main/threading.Condition.wait": [2, 1],
    "all/main/threading.Condition.wait/(waits for a lock)": [1, 1],
    "all/main/work": [1, 0],
    "all/main/work/garbage collection": [1, 1],
  });
  assert.equal(cpu.flame({}).frames.find(({ name }) => name === "garbage collection").kind, "gc");
  assert.doesNotMatch(collapsed(cpu) + speedscope(cpu, "x"), /garbage|lock/); // other tools get the stacks as they were received
});

test("samples are grouped by thread and by task; the names that asyncio makes up are one task", () => {
  const cpu = new CpuProfile();
  const add = (thread, name, task, count, ...stack) => {
    for (let n = 0; n < count; n++) cpu.add(told(n, thread, { name, task }, ...stack));
  };
  add("1", "MainThread", "poll", 4, "loop", "poll");
  add("1", "MainThread", "Task-7", 1, "loop", "serve");
  add("1", "MainThread", "Task-8", 1, "loop", "serve");
  add("2", "worker", null, 3, "run");
  assert.deepEqual(cpu.taskList(), [{ name: "poll", samples: 4 }, { name: "(no task)", samples: 3 }, { name: "(unnamed tasks)", samples: 2 }]);
  const byTask = graph(cpu.flame({ group: "task" }));
  assert.deepEqual([byTask["all/poll/loop/poll"], byTask["all/(unnamed tasks)/loop/serve"], byTask["all/(no task)"]], [[4, 4], [2, 2], [3, 0]]);
  const byThread = cpu.flame({ group: "thread" });
  assertWhole(byThread);
  assert.deepEqual(graph(byThread)["all/MainThread/loop"], [6, 0]);
  const zoomed = cpu.flame({ group: "thread", path: ["thread 2"] });
  assert.deepEqual([zoomed.zoom, zoomed.total], [1, 9]);
  assert.deepEqual(graph(zoomed)["all/worker/run"], [3, 3]);
  assert.deepEqual(cpu.table({ task: "poll" }).rows.map(({ label, total }) => [label, total]), [["poll", 4], ["loop", 4]]);
  assert.deepEqual(profile(["f"]).taskList(), []);
});

test("tasks without end are kept to a number, and no sample is lost", () => {
  const cpu = new CpuProfile();
  for (let n = 0; n < 1000; n++) cpu.add(told(n, "1", { task: `request ${n}` }, "f"));
  assert.equal(cpu.taskList()[0].name, "(other tasks)");
  assert.equal(cpu.taskList().reduce((sum, { samples }) => sum + samples, 0), 1000);
  assert.ok(cpu.taskList().length <= 256);
});

test("functions of one name and file are told apart by the line of their definition", () => {
  const cpu = new CpuProfile();
  const at = (line, definition) => cpu.add({ time: 0, thread: "1", frames: [{ label: "shop.<lambda>", file: "/srv/shop.py", line, definition, thread: "1" }] });
  at(6, 5);
  at(7, 5); // a lambda of two lines
  at(9, 9);
  assert.deepEqual(cpu.table({ sort: "line" }).rows.map(({ line, total }) => [line, total]), [[9, 1], [5, 2]]);
  assert.deepEqual(Object.keys(graph(cpu.flame({}))).sort(), ["all", "all/shop.<lambda>:5", "all/shop.<lambda>:9"]);
});

test("a line has the time of what it calls, once however the function recurses", () => {
  const f = (line) => ["f", "/srv/shop.py", line];
  const cpu = profile([f(1), f(1), f(2)], [f(1), "g"], [f(2)]);
  const lines = cpu.details(cpu.find("f")).lines.map(({ label, self, samples }) => [label, self, samples]);
  assert.deepEqual(lines, [["line 2", 2, 2], ["line 1", 0, 2]]);
});

test("what runs a cell of a notebook is one frame, and what the cell calls is not in it", () => {
  const site = "/venv/lib/python3.11/site-packages";
  const start = [
    ["runpy._run_module_as_main", "<frozen runpy>", 1],
    ["ipykernel_launcher.<module>", `${site}/ipykernel_launcher.py`, 18],
    ["traitlets.config.application.launch_instance", `${site}/traitlets/config/application.py`, 1075],
    ["ipykernel.kernelapp.IPKernelApp.start", `${site}/ipykernel/kernelapp.py`, 701],
    ["tornado.platform.asyncio.BaseAsyncIOLoop.start", `${site}/tornado/platform/asyncio.py`, 205],
    ["asyncio.base_events.BaseEventLoop.run_forever", "/usr/lib/python3.11/asyncio/base_events.py", 608],
  ];
  const cell = [
    ["ipykernel.kernelbase.Kernel.execute_request", `${site}/ipykernel/kernelbase.py`, 778],
    ["IPython.core.interactiveshell.InteractiveShell.run_code", `${site}/IPython/core/interactiveshell.py`, 3577],
  ];
  const select = ["selectors.EpollSelector.select", "/usr/lib/python3.11/selectors.py", 468];
  const display = ["IPython.core.display_functions.display", `${site}/IPython/core/display_functions.py`, 1];
  const cpu = profile([...start, ...cell, "<module>", "work"], [...start, ...cell, "<module>", display], [...start, select], ["main", display]);
  assert.deepEqual(graph(cpu.flame({})), {
    all: [4, 0],
    "all/(IPython)": [3, 0],
    "all/(IPython)/<module>": [2, 0],
    "all/(IPython)/<module>/work": [1, 1],
    "all/(IPython)/<module>/IPython.core.display_functions.display": [1, 1],
    "all/(IPython)/selectors.EpollSelector.select": [1, 1],
    "all/main": [1, 0],
    "all/main/IPython.core.display_functions.display": [1, 1],
  });
  assert.equal(cpu.flame({ idle: false }).total, 3);
  assert.match(collapsed(cpu), /ipykernel_launcher.<module>;traitlets/);
});

// Time

/** A program that spends two thirds of a second in `hot` and one in `warm`, then the reverse; a thread waits all the time. */
function planted() {
  const cpu = new CpuProfile();
  for (let n = 0; n < 6000; n++) {
    const often = n < 3000 ? "hot" : "warm";
    const rare = n < 3000 ? "warm" : "hot";
    cpu.add(told(n, "1", { name: "MainThread", state: "running" }, "main", n % 3 < 2 ? often : rare));
    cpu.add(told(n, "2", { name: "sleeper", state: "waiting" }, "sleep"));
  }
  return cpu;
}

test("a range has its own samples, and beside an earlier one their difference", () => {
  const cpu = planted();
  const query = { idle: false, range: [3000, 6000] };
  assert.deepEqual(graph(cpu.flame(query)), { all: [3000, 0], "all/main": [3000, 0], "all/main/warm": [2000, 2000], "all/main/hot": [1000, 1000] });
  assert.equal(cpu.flame({ idle: false }).total, 6000);
  const { rows } = cpu.table({ ...query, compare: [0, 3000], sort: "selfChange" });
  assert.deepEqual(rows.map(({ label, selfChange, totalChange }) => [label, selfChange.toFixed(3), totalChange.toFixed(3)]), [
    ["warm", "0.333", "0.333"],
    ["main", "0.000", "0.000"],
    ["hot", "-0.333", "-0.333"],
  ]);
  const { frames } = cpu.flame({ ...query, compare: [0, 3000] });
  const shares = Object.fromEntries(frames.map(({ name, value, before }) => [name, [(value - before).toFixed(3), before.toFixed(3)]]));
  assert.deepEqual(shares, { all: ["1.000", "1.000"], main: ["1.000", "1.000"], warm: ["0.667", "0.333"], hot: ["0.333", "0.667"] });
});

test("a difference has what there is no more, and an empty range costs nothing", () => {
  const cpu = new CpuProfile();
  for (let n = 0; n < 10; n++) cpu.add(sample(n, "1", n < 5 ? "old" : "new"));
  assert.deepEqual(cpu.flame({ range: [5, 10], compare: [0, 5] }).frames.map(({ name, before }) => [name, before]).sort(), [["all", 1], ["new", 0], ["old", 1]]);
  assert.deepEqual(cpu.table({ range: [5, 10], compare: [0, 5] }).rows.map(({ label }) => label).sort(), ["new", "old"]);
  for (const [range, compare] of [[[90, 99], [0, 5]], [[0, 5], [90, 99]], [[90, 99], [80, 90]]]) {
    const { frames } = cpu.flame({ range, compare });
    assert.ok(frames.every(({ value, before }) => Number.isFinite(value) && Number.isFinite(before)));
  }
});

test("callers first: each innermost function, and above it who calls it", () => {
  const cpu = profile(["main", "a", "leaf"], ["main", "b", "leaf"], ["main", "b", "leaf"], ["main", "b"], ["leaf", "leaf"]);
  const whole = cpu.flame({ order: "callers" });
  assertWhole(whole);
  assert.deepEqual(graph(whole), {
    all: [5, 0],
    "all/leaf": [4, 0],
    "all/leaf/a": [1, 0],
    "all/leaf/a/main": [1, 1],
    "all/leaf/b": [2, 0],
    "all/leaf/b/main": [2, 2],
    "all/leaf/leaf": [1, 1],
    "all/b": [1, 0],
    "all/b/main": [1, 1],
  });
  assert.equal(cpu.flame({ order: "callers", search: "a" }).matched, 5);
  assert.deepEqual(graph(cpu.flame({ order: "callers", path: [cpu.find("leaf"), cpu.find("b")] }))["all/leaf/b"], [2, 0]);
});

test("a sandwich has a function's callers and what it calls, wherever it is called", () => {
  const cpu = profile(["main", "hub", "x"], ["main", "a", "hub", "y"], ["hub", "hub", "x"], ["main"]);
  const { callers, callees } = cpu.sandwich({ index: cpu.find("hub") });
  assert.deepEqual(graph(callers), { hub: [3, 1], "hub/main": [1, 1], "hub/a": [1, 0], "hub/a/main": [1, 1] });
  assert.deepEqual(graph(callees), { hub: [3, 0], "hub/x": [1, 1], "hub/y": [1, 1], "hub/hub": [1, 0], "hub/hub/x": [1, 1] });
  assert.equal(callees.total, 4);
  assert.equal(cpu.sandwich({ index: 99 }), null);
});

test("the order of time has each thread's stacks one after the other, and pauses as such", () => {
  const cpu = new CpuProfile();
  for (let n = 0; n < 1000; n++) cpu.add(sample(n, "1", "main", n < 500 ? "first" : "second"));
  for (let n = 5000; n < 6000; n++) cpu.add(sample(n, "1", "main", "third"));
  cpu.add(sample(6000, "2", "other"));
  const { frames, thread } = cpu.flame({ order: "time" });
  assert.equal(thread, "1");
  assert.deepEqual(frames.filter(({ parent }) => parent === 0).map(({ name }) => name), ["main", "no sample", "main"]);
  const [first, second, third] = ["first", "second", "third"].map((name) => frames.find((frame) => frame.name === name));
  const about = (value, wanted) => assert.ok(Math.abs(value - wanted) < 20, `${value}, not ${wanted}`); // columns are 7.5 ms wide
  [[first, 0, 500], [second, 500, 500], [third, 5000, 1000]].forEach(([frame, start, value]) => {
    about(frame.start, start);
    about(frame.value, value);
  });
});

test("the order of time is bounded, however much the stacks change", () => {
  const cpu = new CpuProfile();
  for (let n = 0; n < 4000; n++) cpu.add(sample(n, "1", "main", ...Array.from({ length: 40 }, (_, depth) => `f${(n * 31 + depth) % 97}`)));
  const { frames } = cpu.flame({ order: "time" });
  assert.ok(frames.length < 10_000, frames.length);
  frames.forEach(({ parent, value }, i) => assert.ok(i === 0 || (parent < i && value <= frames[parent].value + 1e-6)));
});

test("an hour of 1,000 samples a second is in the strip in at most 1,024 parts, and none is lost", () => {
  const cpu = new CpuProfile();
  const seconds = 3600;
  for (let second = 0; second < seconds; second++) cpu.add(told(1000 * second, "1", { name: "MainThread", state: second % 2 ? "waiting" : "running" }, "f"));
  const { rows, count, width } = cpu.strip();
  assert.deepEqual(rows.map(({ title }) => title), ["MainThread"]);
  assert.ok(count <= 1024 && count * width >= 3_599_000);
  const sum = (counts) => counts.reduce((all, one) => all + one, 0);
  assert.deepEqual([sum(rows[0].busy), sum(rows[0].idle)], [seconds / 2, seconds / 2]);
});

test("samples beyond those kept are merged: they count in the whole, but in no range", () => {
  const cpu = new CpuProfile();
  const kept = 64 * 2 ** 16;
  for (let n = 0; n < kept + 1; n++) cpu.add({ time: n, thread: "1", frames: [{ label: n < 1000 ? "early" : "late", file: "", line: 1 }] });
  assert.equal(cpu.merged, 2 ** 16);
  assert.equal(cpu.strip().from, 2 ** 16);
  assert.equal(cpu.table({}).rows.find(({ label }) => label === "early").total, 1000);
  assert.equal(cpu.table({ range: [0, Infinity] }).rows.find(({ label }) => label === "early"), undefined);
  assert.equal(cpu.count({ range: [0, Infinity] }), kept + 1 - 2 ** 16);
  const [{ weights }] = JSON.parse(speedscope(cpu, "x")).profiles;
  assert.deepEqual(weights, [1000, kept + 1 - 1000]);
});

test("the chosen time and its comparison are texts of the address and come back from them", () => {
  const time = new TimeChoice();
  assert.deepEqual([time.texts, time.comparedRange], [{ range: "", compare: "" }, null]);
  time.choose([3000, 5000]);
  time.compareWith("before");
  assert.deepEqual([time.comparedRange, time.texts], [[1000, 3000], { range: "3000-5000", compare: "before" }]);
  time.compareWith("range");
  assert.deepEqual([time.comparing, time.comparedRange], ["range", null]);
  time.choose([0, 1000]); // the next range is the one to compare with
  assert.deepEqual([time.range, time.comparedRange], [[3000, 5000], [0, 1000]]);
  const again = new TimeChoice();
  again.restore(time.texts);
  assert.deepEqual(again.texts, time.texts);
  for (const odd of ["5-3", "x", "1-", "__proto__", null]) {
    again.restore({ range: odd, compare: odd });
    assert.deepEqual(again.texts, { range: "", compare: "" });
  }
});

// The wire

test("what our profiler adds to the innermost frame is read, and what is odd in it costs nothing", () => {
  const session = new Session();
  const withFacts = (facts) => packed([new Map([...frame("f"), ...facts]), frame("main")]);
  session.publish(collection(0, [withFacts([[19, "MainThread"], [20, "poll"], [21, "lock"], [22, 2]])]));
  const { cpu } = session.process;
  assert.deepEqual([cpu.threadList(), cpu.taskList()], [[{ id: "1", title: "MainThread", samples: 1 }], [{ name: "poll", samples: 1 }]]);
  assert.ok(cpu.find("(waits for a lock)") >= 0);
  assert.equal(cpu.functions[cpu.find("f")].line, 2);
  const odd = [null, [], {}, -1, NaN, true, "", "x".repeat(2000), "__proto__", 2 ** 60];
  session.publish(collection(1, odd.flatMap((value) => [19, 20, 21, 22].map((field) => withFacts([[field, value]])))));
  assert.equal(cpu.samples, 1 + 4 * odd.length);
  assert.equal(session.unreadable, 0);
});

test("the time of a sample on the CPU clock is a fact of the process; an odd one is not known", () => {
  for (const [told, known] of [[0.002, 0.002], [0, null], [-1, null], [NaN, null], ["x", null], [undefined, null]]) {
    const session = new Session();
    session.reply("handshake", handshake({ cpu_interval: told }));
    assert.equal(session.process.facts.cpu_interval, known);
  }
});

test("what samples, and why, are facts of the process; odd ones are not known", () => {
  for (const [told, known] of [["stack reader 3.11.7", "stack reader 3.11.7"], [null, null], [[], null], [undefined, null]]) {
    const session = new Session();
    session.reply("handshake", handshake({ cpu_engine: told, cpu_engine_reason: told }));
    const { cpu_engine, cpu_engine_reason } = session.process.facts;
    assert.deepEqual([cpu_engine, cpu_engine_reason], [known, known]);
  }
});
