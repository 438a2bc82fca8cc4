// The reader of frequent events says of any bytes what the general decoder says.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { readUsual } from "../../../tornado_rbkit/dashboard/src/connection/events.js";
import { Reader, Unreadable } from "../../../tornado_rbkit/dashboard/src/connection/msgpack.js";
import { readAny, readEvent, readMessage } from "../../../tornado_rbkit/dashboard/src/connection/protocol.js";
import { chance } from "./rbkit.mjs";

const big = (value, size) => Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** (size - 1 - i)) % 256);

/** An integer in one of the formats that can hold it, mostly the shortest, as msgpack writes it. */
function integer(random, value) {
  const fitting = [[0x80, null, 0], [256, 0xcc, 1], [65536, 0xcd, 2], [2 ** 32, 0xce, 4], [2 ** 53, 0xcf, 8]].filter(([limit]) => value < limit);
  const [, head, size] = random() < 0.9 ? fitting[0] : random.of(fitting);
  return head === null ? [value] : [head, ...big(value, size)];
}

// What follows returns lists of bytes and of such lists, which `message` flattens: copying them at each level takes long.

function text(random, value) {
  const bytes = [...new TextEncoder().encode(value)];
  const shortest = bytes.length < 32 ? [0xa0 | bytes.length] : bytes.length < 256 ? [0xd9, bytes.length] : [0xda, ...big(bytes.length, 2)];
  return [random() < 0.97 ? shortest : [0xdb, ...big(bytes.length, 4)], bytes];
}

const float = (value) => [0xcb, ...new Uint8Array(new Float64Array([value]).buffer).reverse()];
const array = (random, parts) => [parts.length < 16 && random() < 0.9 ? [0x90 | parts.length] : random() < 0.8 ? [0xdc, ...big(parts.length, 2)] : [0xdd, ...big(parts.length, 4)], parts];

/** A map, now and then with its pairs in another order, one left out or one twice. */
function map(random, ...pairs) {
  if (random() < 0.04) pairs.sort(() => random() - 0.5);
  if (random() < 0.02) pairs.splice(Math.floor(random() * pairs.length), 1);
  if (pairs.length && random() < 0.02) pairs.push(random.of(pairs));
  return [random() < 0.97 ? [0x80 | pairs.length] : [0xde, ...big(pairs.length, 2)], pairs];
}

const ODD = [[0xc0], [0xc3], [0xe0], [0xd1, 0xff, 0x00], [0x80], [0x90], [0xc4, 1, 2], [0xd6, 1, 2, 3, 4, 5], float(NaN), float(-1), float(2.5), float(1e300), [0xcf, ...big(2 ** 52, 8)], [0xcf, 255, 255, 255, 255, 255, 255, 255, 255]];
const NAMES = ["A", "Shop::Item", "é".repeat(64), "x".repeat(128), "x".repeat(129), "x".repeat(600), "", "日本", "__proto__"];

function event(random) {
  const odd = (value) => (random() < 0.02 ? random.of(ODD) : value);
  const name = () => (random() < 0.1 ? [0xc0] : odd(text(random, random.of(NAMES))));
  const id = () => odd(integer(random, random.of([0, 5, 127, 128, 255, 256, 70_000, 2 ** 31, 2 ** 32, 2 ** 47 + 48])));
  const time = () => odd(random() < 0.9 ? float(1.8e12 + random()) : integer(random, 1.8e12));
  const frame = () =>
    map(random, [12, name()], [13, name()], [6, odd(text(random, "/srv/a.py"))], [7, odd(integer(random, random.of([0, 3, 2 ** 32 - 1, 2 ** 32])))], [14, odd([0])], [15, id()], ...(random() < 0.5 ? [] : [[19, name()], [20, odd(text(random, ""))], [21, odd(text(random, random.of(["running", "waiting", "lock", "gc", "odd"])))], [22, odd(integer(random, 12))]]));
  return odd(
    random.of([
      () => map(random, [0, odd([0])], [1, time()], [2, map(random, [3, id()], [4, name()])]),
      () => map(random, [0, odd([1])], [1, time()], [2, map(random, [3, id()])]),
      () => map(random, [0, odd([9])], [1, time()], [2, array(random, Array.from({ length: Math.floor(random() * 20) }, frame))]),
      () => map(random, [0, [random.of([2, 4, 6, 99])]], [1, time()], [2, [0x80]]),
    ])(),
  );
}

function message(random) {
  const odd = (value) => (random() < 0.02 ? random.of(ODD) : value);
  const events = Array.from({ length: Math.floor(random() * 20) }, () => event(random));
  return Uint8Array.from(map(random, [0, odd([7])], [1, odd(float(1.8e12))], [9, odd(integer(random, 77))], [2, odd(array(random, events))]).flat(Infinity));
}

/** Return what a reader says of bytes: its result, or that they cannot be read. */
function said(read, bytes) {
  try {
    const { time, counter, known, unreadable } = read(bytes);
    return { time, counter, known, unreadable };
  } catch (error) {
    assert.ok(error instanceof Unreadable, error?.stack);
    return "unreadable";
  }
}

const either = (bytes) => readUsual(bytes, readEvent) ?? readAny(bytes);

test("random messages, whole, cut off and damaged, are read as the general decoder reads them", () => {
  let usual = 0;
  for (let seed = 1; seed <= 1500; seed++) {
    const random = chance(seed);
    const whole = message(random);
    const damaged = whole.slice();
    damaged[Math.floor(random() * damaged.length)] = Math.floor(random() * 256);
    const longer = Uint8Array.of(...whole, 0xc0);
    const within = new Uint8Array([1, 2, 3, ...whole, 4, 5, 6]).subarray(3, 3 + whole.length); // of a larger buffer
    for (const bytes of [whole, whole.subarray(0, Math.floor(random() * whole.length)), damaged, longer, within]) {
      const [ours, general] = [said(either, bytes), said(readAny, bytes)];
      if (!isDeepStrictEqual(ours, general)) assert.deepEqual(ours, general, `seed ${seed}: ${Buffer.from(bytes).toString("hex")}`);
    }
    if (said(() => readUsual(whole, () => null) ?? { known: [] }, whole).known?.length) usual++;
  }
  assert.ok(usual > 750, `${usual} of the messages have events that are read without the general decoder`);
});

test("claims of endless lists of frames take neither time nor memory", () => {
  const head = [0x84, 0, 7, 1, ...float(1.8e12), 9, 0, 2, 0x91, 0x83, 0, 9, 1, ...float(1.8e12), 2, 0xdd, 255, 255, 255, 255];
  assert.throws(() => readMessage(Uint8Array.from(head)), Unreadable);
  assert.throws(() => readMessage(Uint8Array.from([...head, 0x80, 0x80])), Unreadable);
});

test("recorded traffic of Ruby is read without the general decoder", () => {
  for (const name of ["memory", "cpu"]) {
    const reader = new Reader(new Uint8Array(readFileSync(new URL(`../../data/${name}.msgpack`, import.meta.url))));
    let [events, left] = [0, 0];
    for (;;) {
      let record;
      try {
        record = reader.value();
      } catch {
        break; // the end of the file
      }
      if (record[1] !== 1) continue;
      const read = readUsual(record[3], (value) => (left++, readEvent(value)));
      events += read.known.length;
      assert.deepEqual(said(either, record[3]), said(readAny, record[3]));
    }
    assert.ok(events > 5 && left < events / 2, `${name}: ${left} of ${events}`);
  }
});
