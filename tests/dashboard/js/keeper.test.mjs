// The messages that a tab keeps over a reload: in order, by target, and within its limit.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Keeper } from "../../../tornado_rbkit/dashboard/src/worker/keeper.js";
import { Session } from "../../../tornado_rbkit/dashboard/src/worker/session.js";
import { chance, collection, created, dump, handshake, heapObject, sample, frame } from "./rbkit.mjs";

/** A database in memory, whose writes take a while. */
class MemoryStore {
  parts = new Map(); // by tab: a map by number
  removed = [];

  async write(tab, parts, dropped) {
    await new Promise((resolve) => setTimeout(resolve));
    const mine = this.parts.get(tab) ?? new Map();
    for (const [number, part] of parts) mine.set(number, structuredClone(part));
    for (const number of dropped) assert.ok(mine.delete(number));
    this.parts.set(tab, mine);
  }

  async read(tab) {
    return [...(this.parts.get(tab) ?? [])].sort(([a], [b]) => a - b);
  }

  async removeOlder(before) {
    this.removed.push(before);
  }
}

const text = (parts) => parts.map(({ bytes, action }) => (action ? `<${action[0]}>` : String.fromCharCode(...bytes))).join("");

test("after any adds, flushes and reloads a target has its newest messages, in order", async () => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = chance(seed);
    const store = new MemoryStore();
    const limit = 5 + Math.floor(random() * 60);
    let keeper = new Keeper(Promise.resolve(store), "tab", limit);
    const added = { one: "", two: "" };
    for (let step = 0; step < 80; step++) {
      const target = random.of(["one", "two"]);
      const word = String.fromCharCode(97 + (step % 26)).repeat(1 + Math.floor(random() * 4));
      const bytes = Uint8Array.from(word, (letter) => letter.charCodeAt(0));
      keeper.add({ target, record: [bytes.subarray(0, 1), bytes.subarray(1)] });
      added[target] += word;
      if (random() < 0.3) keeper.flush(); // not waited for
      if (random() < 0.1) {
        await keeper.read(target);
        keeper = new Keeper(Promise.resolve(store), "tab", limit);
      }
    }
    const kept = { one: text(await keeper.read("one")), two: text(await keeper.read("two")) };
    for (const target of ["one", "two"]) assert.ok(added[target].endsWith(kept[target]), `${kept[target]} of ${added[target]}`);
    const stored = [...store.parts.get("tab").values()];
    const size = stored.reduce((sum, { bytes }) => sum + bytes.length, 0);
    assert.ok(size <= limit || stored.length === 1);
    assert.ok(size > 0);
  }
});

test("actions keep their place among the messages, and another tab's are its own", async () => {
  const store = new MemoryStore();
  const keeper = new Keeper(Promise.resolve(store), "a");
  keeper.add({ target: "x", record: [Uint8Array.of(65)] });
  keeper.add({ target: "x", action: ["clearCpu", { process: 1 }] });
  keeper.add({ target: "x", record: [Uint8Array.of(66)] });
  keeper.add({ target: "x", record: [Uint8Array.of(67)] });
  assert.equal(text(await keeper.read("x")), "A<clearCpu>BC");
  assert.equal(text(await new Keeper(Promise.resolve(store), "b").read("x")), "");
  assert.ok(Math.abs(store.removed.at(-1) - (Date.now() - 3_600_000)) < 60_000);
});

test("a refused, full or broken database is reported, and raises nothing", async () => {
  const refused = new Keeper(Promise.reject(new Error("not in private windows")), "tab");
  assert.deepEqual(await refused.read("x"), []);
  assert.equal(refused.trouble, "not in private windows");
  const store = new MemoryStore();
  store.write = async () => {
    throw new DOMException("no space", "QuotaExceededError");
  };
  const full = new Keeper(Promise.resolve(store), "tab");
  full.add({ target: "x", record: [Uint8Array.of(1)] });
  await full.flush();
  assert.equal(full.trouble, "no space");
});

test("a restored session is equal to the kept one, and missed messages are counted", async () => {
  const before = new Session();
  const parts = [];
  before.recording.onrecord = (record) => parts.push({ target: "x", bytes: Uint8Array.from(record.flatMap((piece) => [...piece])) });
  const act = (session) => ([name]) => (name === "baseline" ? session.process.objects.setBaseline() : session.process.cpuProfiles.clear());
  before.reply("handshake", handshake());
  const publish = (session, counter, ...events) => session.publish(collection(counter, events));
  publish(before, 0, created(1, "A"), created(2, "B"), sample([frame("f")]));
  for (const action of [["baseline", null], ["clear", null]]) {
    act(before)(action);
    parts.push({ target: "x", action });
  }
  publish(before, 1, created(3, "A"), sample([frame("g")]), dump(1, 1, [heapObject(7, "A")]));
  const after = new Session();
  await after.restore(parts, act(after), () => {});
  for (const session of [before, after]) {
    assert.deepEqual(session.process.objects.rows({}).rows.map(({ name, live, growth }) => [name, live, growth]), [["A", 2, 1], ["B", 1, 0]]);
    assert.deepEqual(session.process.cpu.table({}).rows.map(({ label, self }) => [label, self]), [["g", 1]]);
    assert.deepEqual(session.snapshots.map(({ number, objects }) => [number, objects]), [[1, 1]]);
    assert.equal(session.process.facts.process_name, "shop");
  }
  publish(after, 5, created(4, "A"));
  assert.equal(after.timeline.missing, 3);
  assert.ok(after.recording.seconds >= before.recording.seconds - 1);
});

test("the snapshot that was removed last can be restored to its place", () => {
  const session = new Session();
  for (const number of [1, 2, 3]) session.publish(collection(number, [dump(number, 1, [heapObject(number, "A")])]));
  session.remove(2);
  session.remove(99);
  assert.deepEqual(session.snapshots.map(({ number }) => number), [1, 3]);
  session.undoRemove();
  session.undoRemove();
  assert.deepEqual(session.snapshots.map(({ number }) => number), [1, 2, 3]);
});
