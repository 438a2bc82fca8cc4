// The exports of one recording, byte for byte; tests/recording/test_golden.py holds `tornado-rbkit export` to the same files.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { collapsed, speedscope } from "../../../tornado_rbkit/dashboard/src/model/cpu/exports.js";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { file } from "./rbkit.mjs";

const data = (name) => readFile(new URL(`../../data/export.${name}`, import.meta.url));

test("the exports have the golden files' bytes", async () => {
  const session = new Session();
  assert.equal(await session.load(file("export.rbkit", await data("msgpack")), () => {}), null);
  assert.deepEqual(Buffer.from(speedscope(session.process.cpu, "golden")), await data("speedscope.json"));
  assert.deepEqual(Buffer.from(collapsed(session.process.cpu)), await data("collapsed.txt"));
});
