// Only the response to the newest request is drawn.

import assert from "node:assert/strict";
import { test } from "node:test";
import { chance } from "./rbkit.mjs";

const page = "http://shop.example/rbkit/";
let worker;
let shown = new URL(`${page}?token=s3cret&target=one#cpu`);
Object.assign(globalThis, {
  location: { get href() { return shown.href; }, get pathname() { return shown.pathname; } },
  history: { replaceState: (state, title, url) => (shown = new URL(url)) },
  sessionStorage: { kept: {}, setItem(key, value) { this.kept[key] = value; } },
  document: { documentElement: { dataset: { token: "tab" } } },
  requestAnimationFrame: (act) => setTimeout(act),
  Worker: class {
    calls = [];
    constructor(url) {
      this.url = url;
      worker = this;
    }
    postMessage(call) {
      this.calls.push(call);
    }
    answer(number, result) {
      this.onmessage({ data: { call: this.calls[number].call, result } });
    }
  },
});
const { Latest } = await import("../../../tornado_rbkit/dashboard/src/views/latest.js");

test("the token leaves the address, and the page's requests have the query that the server gave the scripts", async () => {
  assert.equal(shown.href, `${page}?target=one#cpu`);
  assert.deepEqual(sessionStorage.kept, { "rbkit token /rbkit/": "s3cret" });
  const given = "?token=s3cret&target=one&_xsrf=2%7Cx";
  const { query } = await import(`../../../tornado_rbkit/dashboard/src/views/address.js${given}`);
  assert.equal(query, given);
});

test("a token that a cookie replaces is not stored; one that nothing replaces stays in the address", async () => {
  sessionStorage.kept = {};
  for (const [survives, left] of [["cookie", ""], [undefined, "?token=s3cret"]]) {
    document.documentElement.dataset.token = survives;
    shown = new URL(`${page}?token=s3cret`);
    await import(`../../../tornado_rbkit/dashboard/src/views/address.js?${survives}`);
    assert.equal(shown.search, left);
    assert.deepEqual(sessionStorage.kept, {});
  }
});

test("in any order of the responses, the last one drawn is the response to the newest request", async () => {
  const random = chance(5);
  for (let round = 0; round < 200; round++) {
    worker.calls = [];
    const latest = new Latest();
    const drawn = [];
    const asking = Array.from({ length: 6 }, (_, number) =>
      latest.ask("object", number, (answer) => void drawn.push(answer)),
    );
    for (const number of [0, 1, 2, 3, 4, 5].sort(() => random() - 0.5)) worker.answer(number, number);
    await Promise.all(asking);
    assert.deepEqual(drawn, [5]);
  }
});

test("cancelled requests and objects that no longer exist are not drawn", async () => {
  worker.calls = [];
  const latest = new Latest();
  const drawn = [];
  const cancelled = latest.ask("object", 0, (answer) => drawn.push(answer));
  latest.cancel();
  worker.answer(0, "late");
  await cancelled;
  const gone = latest.ask("object", 1, (answer) => drawn.push(answer));
  worker.answer(1, null);
  await gone;
  assert.deepEqual(drawn, []);
});

test("the remaining steps of a drawing are skipped after a newer request", async () => {
  worker.calls = [];
  const latest = new Latest();
  const drawn = [];
  let second;
  const first = latest.ask(
    "memory",
    0,
    (answer) => {
      drawn.push([1, answer]);
      second = latest.ask("memory", 1, (newer) => drawn.push([1, newer]), (newer) => drawn.push([2, newer]));
    },
    (answer) => drawn.push([2, answer]),
  );
  worker.answer(0, "old");
  await first;
  worker.answer(1, "new");
  await second;
  assert.deepEqual(drawn, [[1, "old"], [1, "new"], [2, "new"]]);
});
