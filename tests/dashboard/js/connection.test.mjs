// The WebSocket connection: replies in order, its end, and reconnecting.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { Connection } from "../../../tornado_rbkit/dashboard/src/connection/connection.js";

const URL_OF = "ws://shop.example/rbkit/ws?encoding=binary";

let sockets;
let status; // what the server's status answers: {status, type, text}, or an Error, or a promise
let asked; // for its status

class FakeSocket {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSED = 3;
  readyState = FakeSocket.CONNECTING;
  sent = [];

  constructor(url) {
    this.url = url;
    sockets.push(this);
  }

  send(command) {
    this.sent.push(command);
  }

  /** As a browser's: its close event comes later. */
  close() {
    this.readyState = 2;
  }

  open() {
    this.readyState = FakeSocket.OPEN;
    this.onopen();
  }

  receive(channel, text) {
    this.onmessage({ data: Uint8Array.from(Buffer.from(channel + text)).buffer });
  }

  end(code, reason = "") {
    this.readyState = FakeSocket.CLOSED;
    this.onclose({ code, reason });
  }
}

class Listener {
  calls = [];
  reply = (command, bytes) => {
    const text = Buffer.from(bytes).toString();
    this.calls.push(["reply", command, text]);
    if (text === "raise") throw new Error("raised");
    return text === "facts" ? null : text;
  };
  publish = (bytes) => this.calls.push(["publish", Buffer.from(bytes).toString()]);
  notice = (name, value) => this.calls.push(["notice", name, value]);
  stray = (what) => this.calls.push(["stray", what]);
  interrupted = () => this.calls.push(["interrupted"]);

  of(kind) {
    return this.calls.filter(([each]) => each === kind);
  }
}

beforeEach(() => {
  sockets = [];
  asked = [];
  status = new Error("refused");
  globalThis.WebSocket = FakeSocket;
  globalThis.fetch = async (url) => {
    asked.push(String(url));
    const answer = await status;
    if (answer instanceof Error) throw answer;
    const headers = new Headers({ "Content-Type": answer.type });
    return { status: answer.status, headers, text: async () => answer.text, json: async () => JSON.parse(answer.text) };
  };
  mock.timers.enable({ apis: ["setTimeout"] });
});

afterEach(() => mock.timers.reset());

/** Let what is promised by now come to pass. */
const settle = async () => {
  for (let i = 0; i < 20; i++) await Promise.resolve();
};

/** Return what a promise brings, which it has to by now. */
const now = (promise) => Promise.race([promise, settle().then(() => Promise.reject(new Error("it is not settled")))]);

function live() {
  const on = new Listener();
  const connection = new Connection(URL_OF, on);
  sockets[0].open();
  sockets[0].receive("0", "facts");
  assert.equal(connection.state, "live");
  on.calls = [];
  return [connection, on, sockets[0]];
}

/** Return an answer of the server's own kinds, or a page of HTML. */
const json = (status, value) => ({ status, type: "application/json", text: JSON.stringify(value) });
const plain = (status, text) => ({ status, type: "text/plain; charset=UTF-8", text });
const html = (status, text) => ({ status, type: "text/html; charset=UTF-8", text: `<html><body>${text}</body></html>` });

const idle = json(200, { commands_waiting: 0, clients: [{ commands_waiting: 0, bytes_waiting: 0 }] });
const busy = json(200, { commands_waiting: 1, clients: [] });
const sending = json(200, { commands_waiting: 0, clients: [{ commands_waiting: 0, bytes_waiting: 5_000_000 }] });
const authorizing = json(200, { commands_waiting: 0, clients: [{ commands_waiting: 1, bytes_waiting: 0 }] });
const unknown = html(404, "404: Not Found");

async function tick(connection, times) {
  for (let i = 0; i < times; i++) {
    connection.tick();
    await settle();
  }
}

// Replies

test("replies are matched to commands in order, and each promise is settled for any reply", async () => {
  const [connection, on, socket] = live();
  const first = connection.request("trigger_gc");
  const second = connection.request("use_cpu_time");
  const third = connection.request("use_wall_time");
  socket.receive("0", "ok");
  assert.throws(() => socket.receive("0", "raise"), /raised/); // as in the browser, where the worker reports it
  socket.receive("0", "\xff\xfe");
  assert.equal(await now(first), "ok");
  await assert.rejects(now(second), /raised/);
  assert.equal(typeof (await now(third)), "string");
  assert.equal(connection.pending.length, 0);
  assert.deepEqual(on.of("reply").map(([, command]) => command), ["trigger_gc", "use_cpu_time", "use_wall_time"]);
});

test("a reply that only begins like a notice is a reply", async () => {
  const [connection, on, socket] = live();
  for (const text of ["server:puma 6.4", "server:", "dropped:many", "dropped:-1", "client_count:", "client_count:1 ", "xserver:connected", "dropped:1\n"]) {
    const reply = connection.request("which_server");
    socket.receive("0", text);
    assert.equal(await now(reply), text);
  }
  assert.deepEqual(on.of("notice"), []);
  const reply = connection.request("trigger_gc");
  socket.receive("0", "dropped:12");
  socket.receive("0", "client_count:3");
  socket.receive("0", "server:disconnected");
  assert.equal(connection.state, "waiting");
  socket.receive("0", "ok");
  assert.equal(await now(reply), "ok");
  assert.deepEqual(on.of("notice"), [["notice", "dropped", "12"], ["notice", "client_count", "3"], ["notice", "server", "disconnected"]]);
});

test("messages on no channel, text messages and unexpected replies are reported, and change nothing", async () => {
  const [connection, on, socket] = live();
  socket.receive("0", "ok");
  socket.receive("2", "what");
  socket.onmessage({ data: new ArrayBuffer(0) });
  socket.onmessage({ data: "1escaped" });
  assert.equal(on.of("stray").length, 4);
  const reply = connection.request("trigger_gc");
  socket.receive("0", "ok");
  assert.equal(await now(reply), "ok");
  assert.equal(connection.state, "live");
});

// Ends

test("a connection that was closed permanently stays closed", async () => {
  let answer;
  status = new Promise((resolve) => (answer = resolve));
  const connection = new Connection(URL_OF, new Listener());
  sockets[0].end(1006);
  await settle();
  assert.equal(asked.length, 1);
  connection.close();
  answer(unknown);
  await settle();
  mock.timers.tick(3_600_000);
  assert.equal(connection.state, "closed");
  assert.equal(sockets.length, 1);
});

test("a connection that is closed while it waits to try again stays closed", async () => {
  const [connection, , socket] = live();
  socket.end(1006);
  await settle();
  assert.equal(connection.state, "lost");
  connection.close();
  mock.timers.tick(3_600_000);
  assert.deepEqual([connection.state, connection.retryAt, sockets.length], ["closed", null, 1]);
});

test("late events of an earlier socket are ignored", async () => {
  const [connection, on, first] = live();
  connection.open();
  const [, second] = sockets;
  first.receive("1", "late");
  first.end(1006);
  await settle();
  second.open();
  second.receive("0", "facts");
  assert.equal(connection.state, "live");
  assert.deepEqual(on.of("publish"), []);
  mock.timers.tick(3_600_000);
  assert.equal(sockets.length, 2);
});

test("a late status response about an earlier socket is ignored", async () => {
  let answer;
  status = new Promise((resolve) => (answer = resolve));
  const connection = new Connection(URL_OF, new Listener());
  sockets[0].end(1006);
  await settle();
  connection.open();
  sockets[1].open();
  sockets[1].receive("0", "facts");
  answer(plain(403, "not allowed"));
  await settle();
  assert.deepEqual([connection.state, connection.reason], ["live", ""]);
});

test("commands that wait when a connection ends fail", async () => {
  const [connection, on, socket] = live();
  const reply = connection.request("trigger_gc");
  socket.end(1006);
  await assert.rejects(now(reply), /lost before the reply/);
  assert.ok(on.of("interrupted").length);
  await assert.rejects(now(connection.request("trigger_gc")), /not connected/);
});

for (const [code, reason, state] of [
  [1008, "too slow for 60 s (stall_timeout)", "lost"],
  [1008, "no pong within 15 s (ping_timeout)", "lost"],
  [1008, "", "lost"],
  [1001, "the server stops", "lost"],
  [1009, "message too big", "lost"],
  [1006, "", "lost"],
  [1013, "rbkit server is not running at tcp://127.0.0.1:5556", "waiting"],
  [1008, "not authorized any more (authorize)", "refused"],
]) {
  test(`closed with ${code} ${reason}: ${state}`, async () => {
    const [connection, , socket] = live();
    socket.end(code, reason);
    await settle();
    assert.deepEqual([connection.state, connection.reason], [state, reason]);
    mock.timers.tick(500);
    assert.equal(sockets.length, state === "refused" ? 1 : 2);
    if (state === "refused") connection.open(); // by hand
    sockets[1].open();
    sockets[1].receive("0", "facts");
    assert.equal(connection.state, "live");
  });
}

test("the delays between attempts grow to 15 s, and start over after a success", async () => {
  const [connection, , socket] = live();
  socket.end(1006);
  const waits = [];
  for (let i = 0; i < 10; i++) {
    await settle();
    waits.push((connection.retryAt - Date.now()) / 1000);
    mock.timers.tick(15_000);
    sockets.at(-1).end(1006);
  }
  assert.ok(waits[0] <= 0.5 && waits[1] > 0.6 && waits.at(-1) > 14 && Math.max(...waits) <= 15, String(waits));
  await settle();
  mock.timers.tick(15_000);
  sockets.at(-1).open();
  sockets.at(-1).receive("0", "facts");
  sockets.at(-1).end(1006);
  await settle();
  assert.ok(connection.retryAt - Date.now() <= 500);
});

// Never opened

for (const [answer, state, reason] of [
  [plain(401, "the token is missing or wrong"), "refused", /token is missing/],
  [plain(403, "not allowed by the setting `authorize`"), "refused", /`authorize`/],
  [json(403, { message: "Forbidden", reason: null }), "refused", /^Forbidden$/],
  [json(403, null), "refused", /^the server answers with 403$/],
  [html(403, "the login page"), "refused", /^the server answers with 403$/],
  [html(200, "the login page"), "unopened", /Upgrade/],
  [{ ...idle, text: idle.text.slice(0, -1) }, "unopened", /Upgrade/],
  [idle, "unopened", /Upgrade[^]*allowed_origins[^]*Host/],
  [unknown, "unopened", /Upgrade[^]*allowed_origins[^]*Host/],
  [html(502, "Bad Gateway"), "lost", /502/],
  [new Error("refused"), "lost", /^$/],
]) {
  test(`an upgrade that fails where the status answers ${answer.status ?? answer} ${answer.text ?? ""}: ${state}`, async () => {
    status = answer;
    const connection = new Connection(URL_OF, new Listener());
    sockets[0].end(1006);
    await settle();
    assert.equal(connection.state, state);
    assert.match(connection.reason, reason);
    assert.deepEqual(asked, ["http://shop.example/rbkit/status?encoding=binary"]);
    mock.timers.tick(1000);
    assert.equal(sockets.length, state === "refused" ? 1 : 2);
  });
}

test("a named profiler that the server does not know is gone until `open` is called", async () => {
  status = unknown;
  const connection = new Connection(URL_OF, new Listener(), true);
  sockets.at(-1).end(1006);
  await settle();
  assert.equal(connection.state, "gone");
  assert.equal(connection.retryAt, null);
  mock.timers.tick(60_000);
  assert.equal(sockets.length, 1);
  connection.open();
  sockets.at(-1).open();
  sockets.at(-1).receive("0", "facts");
  assert.equal(connection.state, "live");
});

test("a connection that does not open within the time limit is lost", async () => {
  const connection = new Connection(URL_OF, new Listener());
  await tick(connection, 19);
  assert.equal(connection.state, "connecting");
  await tick(connection, 1);
  assert.equal(connection.state, "lost");
  mock.timers.tick(500);
  assert.equal(sockets.length, 2);
});

// Dead without a close

test("a quiet connection gets a handshake every five seconds, and stays open while it answers", async () => {
  const [connection, , socket] = live();
  for (let i = 0; i < 100; i++) {
    await tick(connection, 5);
    assert.equal(connection.pending.length, 1);
    socket.receive("0", "facts");
  }
  assert.deepEqual([connection.state, asked.length, sockets.length], ["live", 0, 1]);
});

test("a connection that is dead without a close is lost within half a minute, and another is opened", async () => {
  for (const answer of [idle, new Error("the network is away")]) {
    sockets = [];
    status = answer;
    const [connection, on, socket] = live();
    await tick(connection, 30);
    assert.equal(connection.state, "lost");
    assert.ok(on.of("interrupted").length);
    mock.timers.tick(500);
    sockets[1].open();
    sockets[1].receive("0", "facts");
    assert.equal(connection.state, "live");
    socket.end(1006); // when the browser sees it at last
    await settle();
    assert.equal(connection.state, "live");
  }
});

for (const [name, answer] of Object.entries({ "the command channel is busy": busy, "much is on its way": sending, "authorize thinks": authorizing })) {
  test(`silence is not death while ${name}`, async () => {
    const [connection, , socket] = live();
    const reply = connection.request("objectspace_snapshot");
    status = answer;
    await tick(connection, 1000);
    assert.equal(connection.state, "live");
    assert.ok(asked.length > 10 && asked.length <= 200);
    socket.receive("0", "ok");
    assert.equal(await now(reply), "ok");
    socket.receive("1", "data");
    assert.equal(connection.state, "live");
  });
}

test("without a status from the server, a snapshot gets its full time", async () => {
  for (const answer of [unknown, html(200, "the login page"), { ...idle, text: idle.text.slice(0, -1) }]) {
    sockets = [];
    status = answer;
    const [connection] = live();
    connection.request("objectspace_snapshot").catch(() => {});
    await tick(connection, 320);
    assert.equal(connection.state, "live");
    await tick(connection, 20);
    assert.equal(connection.state, "lost");
  }
});

test("any message counts as a sign of life, also during a status request", async () => {
  status = idle;
  const [connection, , socket] = live();
  connection.request("objectspace_snapshot").catch(() => {});
  for (let i = 0; i < 50; i++) {
    await tick(connection, 14);
    socket.receive("1", "data");
  }
  assert.deepEqual([connection.state, asked.length], ["live", 0]);
  let answer;
  status = new Promise((resolve) => (answer = resolve));
  await tick(connection, 20);
  assert.equal(asked.length, 1);
  socket.receive("1", "data");
  answer(idle);
  await settle();
  assert.equal(connection.state, "live");
});
