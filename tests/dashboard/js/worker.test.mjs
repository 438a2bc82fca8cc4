// The page's worker as a whole: whatever the server sends, and whatever the page asks for meanwhile, each request is
// answered, what cannot be read is counted, and later data is shown.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import { ODD, anEvent, damage, mutate } from "./odd.mjs";
import { chance, collection, created, encode, file, frame, handshake, numbered, sample } from "./rbkit.mjs";

let socket;
let tick; // what the worker does each second
const answers = new Map();
let calls = 0;

class FakeSocket {
  static CONNECTING = 0;
  static OPEN = 1;
  readyState = FakeSocket.CONNECTING;

  constructor() {
    socket = this;
  }

  sent = [];

  send(command) {
    this.sent.push(command);
  }

  close() {
    this.readyState = 2;
  }

  open() {
    if (this.readyState !== FakeSocket.CONNECTING) return;
    this.readyState = FakeSocket.OPEN;
    this.onopen();
  }

  receive(channel, bytes) {
    if (this.readyState === FakeSocket.OPEN) this.onmessage({ data: Uint8Array.of(...Buffer.from(channel), ...bytes).buffer });
  }
}

before(async () => {
  Object.assign(globalThis, {
    self: { postMessage: (answer) => answers.get(answer.call)(structuredClone(answer)) }, // it must be possible to send it
    WebSocket: FakeSocket,
    fetch: async () => Promise.reject(new Error("unreachable")),
    setInterval: (once) => (tick = once),
  });
  await import("../../../tornado_rbkit/dashboard/src/worker/worker.js");
});

/** Call a method of the worker, as the page does; return its {result} or {error}. */
function call(method, argument) {
  return new Promise((resolve) => {
    answers.set(++calls, resolve);
    self.onmessage({ data: { call: calls, method, argument } });
  });
}

/** Return the result of a method that must not fail. */
async function ask(method, argument) {
  const { result, error } = await call(method, argument);
  assert.equal(error, undefined, method);
  return result;
}

/** Follow a profiler anew; return once its socket is open. */
async function connect(tab) {
  socket = null;
  await ask("connect", { tab, target: "shop", url: "ws://shop.example/rbkit/ws", named: true });
  while (socket === null) await new Promise((resolve) => setImmediate(resolve)); // no session before a reload is kept
  socket.open();
}

/** Return what the page may ask for: also for processes, snapshots and objects that are no more. */
function aRequest(random) {
  const process = Math.floor(random() * 8);
  const number = Math.floor(random() * 40);
  const [name, by, id] = [random.of(["A", "B", "function", "nothing"]), random.of(["class", "site"]), Math.floor(random() * 50)];
  const rows = { filter: random.of(["", "a", "("]), sort: random.of(["retained", "bytes", "name", "gone"]), descending: random() < 0.5, limit: 5 };
  const range = random.of([null, [0, 5], [5, 5], [1e9, 2e9]]);
  const looked = { thread: random.of([null, "1", "9"]), task: random.of([null, "load"]), idle: random() < 0.5, range, compare: random.of([null, [0, 2]]) };
  const [from, to] = random.of([[-Infinity, Infinity], [1.8e9, 1.8e9 + 1], [5, 4]]);
  return random.of([
    ["header"],
    ["overview", { from, to, process }],
    ["memory", { from, to }],
    ["objects", { process, ...rows, sort: random.of(["live", "name", "rate"]) }],
    ["snapshots"],
    ["snapshotRows", { number, by, ...rows }],
    ["snapshotDifference", { before: number, after: Math.floor(random() * 40), by, ...rows }],
    ["snapshotObjects", { number, butNotIn: random.of([null, 1, 99]), by, name, limit: 5 }],
    ["snapshotWays", { number, name }],
    ["snapshotObject", { number, id }],
    ["suspects", { before: number, after: Math.floor(random() * 40) }],
    ["snapshotFile", { number }],
    ["cpuOverview", { process, idle: random() < 0.5 }],
    ["flame", { process, ...looked, order: random.of(["calls", "callers", "time"]), group: random.of([null, "thread", "task"]), path: random.of([[], [0], ["thread 1", 0], [99]]), search: random.of(["", "f"]) }],
    ["sandwich", { process, ...looked, index: random.of([0, 1, 99]) }],
    ["functions", { process, ...looked, ...rows }],
    ["functionDetails", { process, ...looked, index: random.of([0, 1, 99]) }],
    ["findFunction", { process, name }],
    ["exportCpu", { process, format: random.of(["speedscope", "collapsed"]), name }],
    ["sessionFile"],
    ["setBaseline", { process }],
    ["clearCpu", { process }],
    ["undoClearCpu", { process }],
    ["removeSnapshot", { number }],
    ["undoRemoveSnapshot"],
    ["addSnapshots", file("more.rbkit", encode([1, 1, null, collection(0, [anEvent(random, 5)])]))],
    ["reconnect"],
  ]);
}

/** Send something to the page. */
function send(random, number) {
  const message = numbered({ 0: 7, 1: 1.8e12 + number, 9: number - Math.floor(random() * 2), 2: [anEvent(random, number), anEvent(random, number)] });
  random.of([
    () => socket.receive("1", damage(encode(mutate(message, random)), random)),
    () => socket.receive("1", encode(message)),
    () => socket.receive("0", damage(handshake({ pid: random.of(ODD), clock_type: random.of(["wall", "cpu", ...ODD]) }), random)),
    () => socket.receive("0", Buffer.from(random.of(["ok", "error:busy too much", "client_count:3", "dropped:7", "dropped:-1", "server:restarted", "server:disconnected", "server:connected", ""]))),
    () => socket.receive(random.of(["2", ""]), Buffer.from("x")),
    () => socket.readyState === FakeSocket.OPEN && socket.onmessage({ data: "a text" }),
  ])();
}

/** Assert that good data is shown as usual. */
async function assertGoesOn() {
  socket.open();
  socket.receive("0", Buffer.from("server:restarted"));
  const { messages, unreadable } = await ask("header");
  const at = 1.9e12;
  socket.receive("1", collection(0, [created(1, "Sound", at), sample([frame("leaf"), frame("root")], at)], at));
  socket.receive("1", Uint8Array.of(0xc1));
  const header = await ask("header");
  assert.deepEqual([header.messages - messages, header.unreadable - unreadable], [2, 1]);
  const process = header.processes.at(-1).number;
  const { rows } = await ask("objects", { process, filter: "", sort: "live", descending: true, limit: 5 });
  assert.deepEqual(rows.map(({ name, live }) => [name, live]), [["Sound", 1]]);
  const functions = await ask("functions", { process, idle: true, sort: "self", limit: 5 });
  assert.deepEqual(functions.rows.map(({ label, self, total }) => [label, self, total]), [["leaf", 1, 1], ["root", 0, 1]]);
}

test("odd messages in any order, with requests between them: all are answered, and later data is shown", async () => {
  const random = chance(16);
  let unreadable = 0;
  for (let round = 0; round < 8; round++) {
    await connect(`tab ${round}`);
    const { session } = await ask("header");
    for (let n = 0; n < 600; n++) {
      if (random() < 0.7) send(random, n);
      else if (random() < 0.05) tick();
      else if (random() < 0.05) call("command", { name: random.of(["trigger_gc", "handshake"]), session: random.of([session, session, 0]) }); // answered when the socket is closed
      else await ask(...aRequest(random));
      socket.open(); // where the page connects anew
    }
    ({ unreadable } = await ask("header"));
    assert.ok(unreadable > 50, `${unreadable} are counted`);
    await assertGoesOn();
  }
  assert.equal({}.polluted, undefined);
  await ask("open", file("end.rbkit", encode([0, 1, null, collection(0, [])]))); // closes the connection
});

test("a command goes to the profiler that was in view when it was given, and to no other", async () => {
  await connect("first");
  const { session } = await ask("header");
  const [first, collecting] = [socket, ask("command", { name: "trigger_gc", session })];
  await connect("second");
  assert.match(await collecting, /connection was lost/);
  assert.match(await ask("command", { name: "objectspace_snapshot", session }), /another profiler is in view/);
  await ask("open", file("end.rbkit", encode([0, 1, null, collection(0, [])])));
  assert.match(await ask("command", { name: "objectspace_snapshot", session }), /another profiler is in view/);
  assert.deepEqual([first.sent, socket.sent], [["handshake", "trigger_gc"], ["handshake"]]);
});
