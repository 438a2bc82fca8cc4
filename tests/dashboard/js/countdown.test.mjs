// The seconds of a pause.

import assert from "node:assert/strict";
import { test } from "node:test";
import { countdown } from "../../../tornado_rbkit/dashboard/src/views/countdown.js";

/** Return what a countdown tells where each timer is called so many seconds late. */
async function told(t, seconds, late) {
  let clock = 1000;
  t.mock.method(performance, "now", () => clock);
  t.mock.method(globalThis, "setTimeout", (act, ms) => {
    clock += ms + late * 1000;
    queueMicrotask(act);
  });
  const all = [];
  for await (const left of countdown(seconds)) all.push(left);
  return all;
}

test("a pause is told second by second", async (t) => {
  assert.deepEqual(await told(t, 5, 0), [5, 4, 3, 2, 1]);
});

test("a pause in a tab out of sight, where a timer is called once a minute, is as long as elsewhere", async (t) => {
  assert.deepEqual(await told(t, 150, 59), [150, 90, 30]);
});

test("a pause on a busy machine, which calls each timer late, takes no second more", async (t) => {
  assert.deepEqual(await told(t, 5, 0.25), [5, 4, 3, 2]);
});
