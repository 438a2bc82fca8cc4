// What own code the samples are due to, and where a thread waits, in samples whose truth is planted.

import assert from "node:assert/strict";
import { test } from "node:test";
import { findCauses, findStanding } from "../../../tornado_rbkit/dashboard/src/model/cpu/causes.js";
import { CpuProfile } from "../../../tornado_rbkit/dashboard/src/model/cpu/profile.js";
import { findBusy } from "../../../tornado_rbkit/dashboard/src/model/cpu/waits.js";

const STANDARD = "/usr/lib/python3.11";
const OWN = "/srv/orders.py";

const at = (label, line, file = OWN) => ({ label, file, line, definition: 1 });

/** A profile with samples of {frames, thread, state}, one in each millisecond, in turn. */
function record(count, ...choices) {
  const profile = new CpuProfile();
  for (let ms = 0; ms < count; ms++) {
    const { thread = "MainThread", ...one } = choices[ms % choices.length];
    profile.add({ time: 1.8e12 + ms, thread, name: thread, state: "running", ...one });
  }
  return profile;
}

const causesOf = (profile) => findCauses(profile, findBusy(profile, null, null).functions);

test("time in a library counts for the own line that calls it", () => {
  const handle = at("handle", 11);
  const emit = at("Handler.emit", 1098, `${STANDARD}/logging/__init__.py`);
  const format = at("Formatter.format", 680, `${STANDARD}/logging/__init__.py`);
  const causes = causesOf(record(100, { frames: [format, emit, handle] }, { frames: [emit, handle] }, { frames: [format, handle] }, { frames: [at("total", 8), handle] }));
  assert.deepEqual(causes.map(({ kind, label, line, self }) => [kind, label, line, self]), [["library", "handle", 11, 75], ["own", "total", 1, 25]]);
  assert.deepEqual([causes[0].inner.label, causes[0].inner.isMost], ["Formatter.format", true]);
});

test("two lines of a function that call libraries are two causes", () => {
  const dumps = at("JSONEncoder.iterencode", 258, `${STANDARD}/json/encoder.py`);
  const match = at("match", 20, "/srv/venv/lib/python3.11/site-packages/regex/regex.py");
  const causes = causesOf(record(90, { frames: [dumps, at("export", 5)] }, { frames: [match, at("export", 6)] }, { frames: [match, at("export", 6)] }));
  assert.deepEqual(causes.map(({ label, line, self, inner }) => [label, line, self, inner.label]), [["export", 6, 60, "match"], ["export", 5, 30, "JSONEncoder.iterencode"]]);
});

test("garbage collection is one cause, with the own line in which most of it runs", () => {
  const causes = causesOf(record(100, { frames: [at("parse", 7)], state: "gc" }, { frames: [at("parse", 7)], state: "gc" }, { frames: [at("load", 3)], state: "gc" }, { frames: [at("parse", 9)] }));
  assert.deepEqual(causes.map(({ kind, label, self }) => [kind, label, self]), [["gc", "garbage collection", 75], ["own", "parse", 25]]);
  assert.deepEqual([causes[0].inner.label, causes[0].inner.line, causes[0].inner.isMost], ["parse", 7, true]);
});

test("what an event loop or a thread calls is not due to the line that started it", () => {
  const loop = [at("BaseEventLoop._run_once", 1922, `${STANDARD}/asyncio/base_events.py`), at("<module>", 22)];
  const parse = at("parse_headers", 9, "/srv/venv/lib/python3.11/site-packages/httptools/parser.py");
  const causes = causesOf(record(100, { frames: [parse, ...loop] }, { frames: [at("respond", 4), ...loop] }));
  assert.deepEqual(causes.map(({ kind, label, self, inner }) => [kind, label, self, inner]), [["library", "parse_headers", 50, null], ["own", "respond", 50, null]]);
});

test("functions that do not count are in no cause", () => {
  const profile = record(100, { frames: [at("sleeps", 4)] }, { frames: [at("total", 8)] });
  const { functions } = findBusy(profile, null, null);
  assert.deepEqual(findCauses(profile, functions.filter(({ label }) => label === "total")).map(({ label, self }) => [label, self]), [["total", 50]]);
});

const waitpid = { frames: [at("Popen._try_wait", 1900, `${STANDARD}/subprocess.py`), at("compile", 14)], state: "waiting" };
const receive = { frames: [at("ask", 17)], state: "waiting" };

test("the lines at which the main thread waits are named, with what waits there", () => {
  const wall = record(1000, waitpid, waitpid, receive, { ...receive, thread: "heartbeat", frames: [at("beat", 3)] });
  const { thread, places } = findStanding(wall, 5);
  assert.equal(thread, "MainThread");
  assert.deepEqual(places.map(({ label, line, share, inner }) => [label, line, share.toFixed(2), inner?.label ?? null]), [["compile", 14, "0.67", "Popen._try_wait"], ["ask", 17, "0.33", null]]);
});

test("a thread that is always at one line has nothing to do if another has", () => {
  const parked = { frames: [at("join", 1100, `${STANDARD}/threading.py`), at("<module>", 30)], state: "waiting" };
  const wall = record(1000, parked, { ...waitpid, thread: "worker" }, { ...receive, thread: "worker" });
  assert.equal(findStanding(wall, 5).thread, "worker");
  assert.equal(findStanding(record(1000, parked), 5).thread, "MainThread");
});

test("where states are not known, threads wait if the process hardly computes", () => {
  const wall = record(1000, { ...waitpid, state: null }, { frames: [at("ask", 17)], state: null });
  assert.deepEqual(findStanding(wall, 5).places.map(({ label }) => label).sort(), ["ask", "compile"]);
  assert.deepEqual(findStanding(wall, 95).places.map(({ label }) => label), ["compile"]); // subprocess waits by its name
});

test("a line at which a thread computes all the time that the process does is no wait", () => {
  const unknown = (label, line) => ({ frames: [at(label, line)], state: null });
  const wall = record(1000, unknown("score", 4), ...Array(4).fill(unknown("ask", 17))); // score computes
  assert.deepEqual(findStanding(wall, 20).places.map(({ label }) => label), ["ask"]);
  const known = record(1000, { frames: [at("score", 4)], state: "running" }, ...Array(4).fill(receive));
  assert.deepEqual(findStanding(known, 20).places.map(({ label, share }) => [label, share]), [["ask", 0.8]]);
  const waits = record(1000, { ...waitpid }, ...Array(4).fill(unknown("ask", 17)));
  assert.deepEqual(findStanding(waits, 25).places.map(({ label }) => label), ["ask", "compile"], "what is known to wait does");
});

test("nothing is said of waits without the CPU time, samples, or own code that waits", () => {
  assert.equal(findStanding(record(1000, waitpid), null), null);
  assert.equal(findStanding(record(10, waitpid), 5), null);
  assert.equal(findStanding(new CpuProfile(), 5), null);
  const select = [at("EpollSelector.select", 468, `${STANDARD}/selectors.py`), at("BaseEventLoop._run_once", 1884, `${STANDARD}/asyncio/base_events.py`), at("<module>", 22)];
  assert.equal(findStanding(record(1000, { frames: select, state: "waiting" }), 5), null);
});
