// The decoder reads all of MessagePack, and its memory is bounded by the number of received bytes.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Unreadable, decode } from "../../../tornado_rbkit/dashboard/src/connection/msgpack.js";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { encode, file } from "./rbkit.mjs";

const bytes = (hex) => Uint8Array.from(Buffer.from(hex.replaceAll(" ", ""), "hex"));

// Of each format that the specification has, one with its value.
const FORMATS = {
  "7f": 127, "80": {}, "81 a1 61 01": { a: 1 }, "81 03 01": { 3: 1 }, "90": [], "92 01 02": [1, 2], "a0": "", "a3 66 6f 6f": "foo",
  "c0": null, "c2": false, "c3": true, "c4 01 ff": Uint8Array.of(255), "c5 00 01 ff": Uint8Array.of(255), "c6 00 00 00 01 ff": Uint8Array.of(255),
  "c7 02 05 01 02": null, "c8 00 01 05 01": null, "c9 00 00 00 01 05 01": null, "ca 3f 80 00 00": 1, "cb 3f f8 00 00 00 00 00 00": 1.5,
  "cc ff": 255, "cd ff ff": 65535, "ce ff ff ff ff": 4294967295, "cf 00 00 00 01 00 00 00 02": 4294967298,
  "d0 80": -128, "d1 80 00": -32768, "d2 80 00 00 00": -2147483648, "d3 ff ff ff ff ff ff ff fe": -2, "e0": -32, "ff": -1,
  "d4 05 01": null, "d5 05 01 02": null, "d6 ff 01 02 03 04": null, "d7 05 01 02 03 04 05 06 07 08": null, [`d8 05 ${"00".repeat(16)}`]: null,
  "d9 03 66 6f 6f": "foo", "da 00 03 66 6f 6f": "foo", "db 00 00 00 03 66 6f 6f": "foo", "dc 00 01 05": [5], "dd 00 00 00 01 05": [5],
  "de 00 01 05 06": { 5: 6 }, "df 00 00 00 01 05 06": { 5: 6 }, "82 c0 01 a9 5f 5f 70 72 6f 74 6f 5f 5f 02": { "(object)": 1, "(__proto__)": 2 },
  "a2 c3 28": "\ufffd(",
};

test("every format is read, and reported as incomplete when cut at any byte", () => {
  for (const [hex, value] of Object.entries(FORMATS)) {
    const whole = bytes(hex);
    assert.deepEqual(decode(whole), value, hex);
    for (let end = 0; end < whole.length; end++) assert.throws(() => decode(whole.subarray(0, end)), Unreadable, `${hex} to ${end}`);
    assert.throws(() => decode(Uint8Array.of(...whole, 0xc0)), Unreadable, `${hex} and more`);
  }
  assert.throws(() => decode(bytes("c1")), Unreadable);
});

test("repeated and long texts are decoded correctly", () => {
  const texts = ["String", "Strinh", "é".repeat(64), "x".repeat(128), "x".repeat(129), "\ufeffBOM", "日本"];
  for (let i = 0; i < 6000; i++) texts.push(`Class${i}`);
  for (const round of [1, 2]) for (const text of texts) assert.equal(decode(encode(text)), text, `${round} ${text}`);
});

test("claimed lengths take no memory", () => {
  const claims = {
    arrays: Array.from({ length: 60 }, () => bytes("dd 01 c9 c3 80")),
    maps: Array.from({ length: 60 }, () => bytes("df 01 c9 c3 80 01")),
    deep: [new Uint8Array(1_000_000).fill(0x91)],
    wide: Array.from({ length: 60 }, () => bytes("dd 00 0f 42 40")).concat([new Uint8Array(1_000_000).fill(0x05)]),
    bin: [bytes("c6 ff ff ff ff 00")],
    text: [bytes("db ff ff ff ff 00")],
    ext: [bytes("c9 ff ff ff ff 05 00")],
  };
  for (const [name, parts] of Object.entries(claims)) {
    const before = process.memoryUsage().heapUsed;
    const claim = Buffer.concat(parts);
    assert.throws(() => decode(claim), Unreadable, name);
    assert.ok(process.memoryUsage().heapUsed - before < 200e6, name);
  }
});

test("a message or a file with false lengths is reported, and the session continues", async () => {
  const claim = Buffer.concat(Array.from({ length: 60 }, () => bytes("dd 01 c9 c3 80")));
  const session = new Session();
  session.publish(claim);
  assert.equal(session.unreadable, 1);
  session.reply("handshake", claim);
  assert.equal(session.unreadable, 2);
  await assert.rejects(new Session().load(file("claim.rbkit", claim), () => {}), /claim.rbkit is not a recording of rbkit/);
  await assert.rejects(new Session().load(file("deep.rbkit", new Uint8Array(5_000_000).fill(0x94)), () => {}), /nested deeper than 64 levels/);
  await assert.rejects(new Session().load(file("record.rbkit", bytes("94 01 01 c0 c6 ff ff ff ff")), () => {}), /ends in the middle/);
});

test("a message with more values than the page can hold is reported", () => {
  assert.throws(() => decode(Buffer.concat([bytes("dd 01 40 00 00"), new Uint8Array(0x1400000).fill(0xc0)])), /more than 16777216 values/);
});
