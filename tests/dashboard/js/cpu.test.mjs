// The CPU profile: flame graph and tables from samples.

import assert from "node:assert/strict";
import test from "node:test";
import { CpuProfile } from "../../../tornado_rbkit/dashboard/src/model/cpu.js";
import { isWaiting, kindOf } from "../../../tornado_rbkit/dashboard/src/model/functions.js";
import { chance } from "./rbkit.mjs";

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
  assert.deepEqual(cpu.threadList(false), [{ id: "1", samples: 2 }]);
  const take = cpu.functions.findIndex(({ label }) => label === "take");
  assert.deepEqual(cpu.details(take, null, false).callees, []);
  assert.equal(cpu.details(take, null, true).callees[0].samples, 2);
});

test("functions in which threads wait", () => {
  for (const [label, file] of [
    ["threading.Condition.wait", "/usr/lib/python3.11/threading.py"],
    ["selectors.EpollSelector.select", "C:\\Python311\\Lib\\selectors.py"],
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
  const cpu = profile([start, cli, "main", load("_find_and_load"), load("_load_unlocked"), "module", load("_find_and_load")], [start, "main"]);
  assert.deepEqual(graph(cpu.flame({})), {
    all: [2, 0],
    "all/(program start)": [2, 0],
    "all/(program start)/main": [2, 1],
    "all/(program start)/main/(import machinery)": [1, 0],
    "all/(program start)/main/(import machinery)/module": [1, 0],
    "all/(program start)/main/(import machinery)/module/(import machinery)": [1, 1],
  });
  assert.deepEqual(cpu.table({}).rows.map(({ label, self, total }) => [label, self, total]), [["main", 1, 2], ["(import machinery)", 1, 1], ["(program start)", 0, 2], ["module", 0, 1]]);
  assert.match(cpu.collapsed(), /runpy._run_code;tornado_rbkit.cli.main.main;main;importlib._bootstrap._find_and_load;importlib/);
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
  assert.match(cpu.collapsed(), /^thread 1;block in <main> \(\/srv\/app.rb:9\) 2$/m);
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
    ["/usr/lib/python3.11/threading.py", "standard"],
    ["<frozen importlib._bootstrap>", "standard"],
    ["/usr/lib/ruby/3.1.0/set.rb", "standard"],
    ["C:\\Python311\\Lib\\queue.py", "standard"],
    ["<cfunc>", "native"],
    ["", "native"],
  ]) assert.equal(kindOf(file), kind, file);
});
