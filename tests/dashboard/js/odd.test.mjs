// Arbitrary received data: nothing raises, invalid parts are counted, and the rest is processed as usual.

import assert from "node:assert/strict";
import { test } from "node:test";
import { collapsed, speedscope } from "../../../tornado_rbkit/dashboard/src/model/cpu/exports.js";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { difference, select } from "../../../tornado_rbkit/dashboard/src/model/differences.js";
import { ODD, anEvent, damage, mutate } from "./odd.mjs";
import { chance, collection, created, destroyed, dump, encode, file, frame, handshake, heapObject, numbered, sample } from "./rbkit.mjs";

/** Ask for everything that the views ask for. */
function askAll(session) {
  session.timeline.range(1.8e9 - 100, 1.8e9 + 100);
  session.timeline.range(-Infinity, Infinity);
  for (const { objects, cpu } of session.processes) {
    objects.rows({ filter: "f" });
    objects.setBaseline();
    cpu.table({ filter: "f" });
    for (const { id } of [...cpu.threadList(), { id: null }]) {
      for (const order of ["calls", "callers", "time"]) cpu.flame({ thread: id, order, group: "task", compare: [0, 5] });
      cpu.flame({ thread: id, group: "thread", search: "f" });
      cpu.sandwich({ thread: id, index: 0 });
      cpu.table({ thread: id, sort: "label" });
      cpu.details(0, { thread: id });
    }
    structuredClone([cpu.strip(), cpu.taskList()]);
    JSON.parse(speedscope(cpu, "x"));
    collapsed(cpu);
  }
  for (const snapshot of session.snapshots) {
    select(snapshot.byClass(), { filter: "a", sort: "bytes" });
    select(difference(snapshot, session.snapshots[0]), { sort: "count" });
    for (const name of snapshot.classNames) snapshot.objectsOf("class", name, session.snapshots[0], 100);
    for (const id of [...snapshot.ids.slice(0, 5), 12345]) snapshot.object(id, 100);
  }
  structuredClone([session.log.lines, session.processes.map((process) => process.summary()), session.timeline.range(0, 2e9)]);
}

/** Assert that good messages are counted right by a session that had odd ones. */
function assertIsSound(session) {
  session.restart();
  const [before, messages, unreadable] = [session.snapshots.length, session.messages, session.unreadable];
  const [at, correlation] = [1.9e12, "sound"];
  session.publish(collection(1, [created(1, "Sound", at), created(2, "Sound", at), destroyed(1, at), sample([frame("leaf"), frame("root")], at)], at));
  session.publish(collection(2, [dump(correlation, 2, [heapObject(1, "A", [2])], at)], at));
  session.publish(collection(3, [dump(correlation, 2, [heapObject(2, "B", [1])], at)], at));
  assert.equal(session.reply("handshake", handshake({ pid: 77 })), null);
  assert.equal(session.messages, messages + 3);
  assert.equal(session.unreadable, unreadable);
  const { facts, objects, cpu } = session.process;
  assert.equal(facts.pid, "77");
  const snapshot = session.snapshots.at(-1);
  assert.ok(session.snapshots.length > before || before === 30);
  assert.deepEqual(snapshot.object(1, 10).references.map(({ name }) => name), ["B"]);
  assert.deepEqual(objects.rows({}).rows.map(({ name, live, created }) => [name, live, created]), [["Sound", 1, 2]]);
  assert.deepEqual(cpu.table({}).rows.map(({ label, self, total }) => [label, self, total]), [["leaf", 1, 1], ["root", 0, 1]]);
}

test("thousands of odd messages and replies raise nothing, and good ones are counted right afterwards", () => {
  const random = chance(15);
  let unreadable = 0;
  for (let round = 0; round < 12; round++) {
    const session = new Session();
    for (let n = 0; n < 500; n++) {
      const events = [anEvent(random, n), anEvent(random, n), anEvent(random, n)];
      const message = mutate(numbered({ 0: 7, 1: 1.8e12 + n, 9: n, 2: events }), random);
      session.publish(damage(encode(message), random));
      if (n % 7 === 0) session.reply(random.of(["handshake", "trigger_gc"]), damage(handshake({ pid: random.of(ODD), pwd: random.of(ODD) }), random));
      if (n % 11 === 0) session.notice("dropped", "3", new Uint8Array());
      if (n % 100 === 0) askAll(session);
    }
    askAll(session);
    unreadable += session.unreadable;
    assertIsSound(session);
    askAll(session);
  }
  assert.ok(unreadable > 1000, `${unreadable} are counted as unreadable`);
  assert.equal({}.polluted, undefined);
});

test("an invalid event does not affect the other events of its message", () => {
  for (const odd of ODD) {
    const session = new Session();
    session.publish(collection(0, [created(1, "Thing"), odd, numbered({ 0: odd, 1: 1.8e12 }), created(2, "Thing")]));
    assert.equal(session.process.objects.rows({}).live, 2, String(odd));
    assert.ok(session.unreadable >= 1);
  }
});

test("an invalid object does not affect the other objects of its snapshot", () => {
  for (const odd of [null, 5, "x", heapObject(NaN, "A"), heapObject("x", "A"), heapObject(2, []), heapObject(2, "A", [null]), heapObject(2, "A", 5)]) {
    const session = new Session();
    session.publish(collection(0, [dump(1, 3, [heapObject(1, "A", [3]), odd, heapObject(3, "B", [1])])]));
    const [snapshot] = session.snapshots;
    assert.deepEqual([snapshot.objects, snapshot.unreadable, session.unreadable], [2, 1, 1]);
    assert.deepEqual(snapshot.object(3, 10).references.map(({ name }) => name), ["A"]);
  }
});

test("names that are numbers, or those of properties that objects have, are names", () => {
  const session = new Session();
  const names = ["__proto__", "constructor", "toString", "5", "(unknown)"];
  session.publish(collection(0, ["__proto__", "constructor", "toString", 5, null].map((name, i) => created(i, name))));
  session.publish(collection(1, [sample(names.map((name) => frame(name)))]));
  session.publish(collection(2, [numbered({ 0: 6, 1: 1.8e12, 2: new Map([["__proto__", 1], ["constructor", "x"], ["heap_live_slots", 7]]) })]));
  assert.deepEqual(session.process.objects.rows({ sort: "name", descending: false }).rows.map(({ name }) => name), names.toSorted());
  assert.equal(session.process.cpu.table({}).matching, 5);
  assert.equal(session.timeline.range(0, 2e9).lastStats.get("heap_live_slots"), 7);
  assert.equal(session.unreadable, 0);
});

test("a handshake with a key __proto__ is valid, and one that cannot be read is reported", () => {
  const session = new Session();
  const told = new Map([["__proto__", { polluted: 1 }], ["pid", 5], ["process_name", "shop"]]);
  assert.equal(session.reply("handshake", encode(numbered({ 0: 8, 1: 1.8e12, 2: told }))), null);
  assert.equal(session.process.facts.pid, "5");
  for (const odd of [encode(null), encode(numbered({ 0: 8, 1: 1, 2: null })), new Uint8Array(), Buffer.from("ok"), Uint8Array.of(0xc1)]) {
    assert.match(session.reply("handshake", odd), /^error:invalid-reply/);
  }
  assert.equal(session.reply("trigger_gc", Buffer.from("réussi")), "réussi");
  assert.equal(session.process.facts.pid, "5");
});

test("invalid files are reported, or read as far as possible", async () => {
  const random = chance(33);
  const good = [
    encode([0, 0, "handshake", handshake()]),
    ...Array.from({ length: 20 }, (_, n) => encode([n, 1, null, collection(n, [created(n, "Thing", 1.8e12 + n)])])),
    encode([21, 0, null, Buffer.from("dropped:3")]),
    encode([22, 0, null, Buffer.from("what is this")]),
  ];
  for (let round = 0; round < 500; round++) {
    const records = good.map((record) => (random() < 0.1 ? damage(record, random) : record));
    if (random() < 0.3) records.splice(Math.floor(random() * records.length), 0, encode(mutate([1, 1, null, random.of(ODD)], random)));
    const session = new Session();
    try {
      await session.load(file("odd.rbkit", ...records), () => {});
    } catch (error) {
      assert.match(error.message, /^odd.rbkit is (damaged after \d+ messages|not a recording of rbkit): /);
    }
    askAll(session);
  }
  const session = new Session();
  assert.equal(await session.load(file("good.rbkit", ...good), () => {}), null);
  assert.deepEqual([session.process.objects.rows({}).live, session.dropped, session.unreadable], [20, 3, 1]);
});

test("records larger than one read are read completely, and a cut record is reported", async () => {
  const large = Array.from({ length: 3 }, (_, n) => encode([n, 1, null, collection(n, [created(n, "Thing"), numbered({ 0: 6, 1: 1.8e12, 2: { padding: "x".repeat(1_500_000) } })])]));
  const session = new Session();
  assert.equal(await session.load(file("large.rbkit", ...large), () => {}), null);
  assert.equal(session.process.objects.rows({}).live, 3);
  const cut = new Session();
  const damage = await cut.load(file("cut.rbkit", ...large.slice(0, 2), large[2].subarray(0, 1_000_000)), () => {});
  assert.equal(damage, "cut.rbkit is damaged after 2 messages: it ends in the middle of one");
});
