// Objects by their place of creation, the growth there, and the parts of the process's memory.

import assert from "node:assert/strict";
import { test } from "node:test";
import { difference, differenceBySite, select } from "../../../tornado_rbkit/dashboard/src/model/differences.js";
import { IncomingSnapshot } from "../../../tornado_rbkit/dashboard/src/model/incoming.js";
import { partsOf } from "../../../tornado_rbkit/dashboard/src/views/account.js";
import { chance } from "./rbkit.mjs";

function snapshot(objects, memory = {}) {
  const incoming = new IncomingSnapshot("1", 1.8e12);
  incoming.add({ expected: objects.length, objects, unreadable: 0, ...memory }, [new Uint8Array()]);
  return incoming.finish(1);
}

const object = (id, name, size, file, line) => ({ id, name, size, file, line, references: [] });

test("random snapshots by place have all objects and bytes, and their growth is the difference of those", () => {
  const random = chance(11);
  for (let round = 0; round < 50; round++) {
    const heap = () =>
      Array.from({ length: Math.floor(random() * 40) }, (_, id) =>
        object(id, random.of(["A", "B"]), Math.floor(random() * 100), random.of(["", "/srv/a.py", "/srv/b.py"]), Math.floor(random() * 3)),
      );
    const [before, after] = [snapshot(heap()), snapshot(heap())];
    const sum = (rows, key) => rows.reduce((total, row) => total + row[key], 0);
    for (const one of [before, after]) {
      assert.equal(sum(one.bySite(), "count"), one.objects);
      assert.equal(sum(one.bySite(), "bytes"), one.bytes);
      for (const { name, count } of select(one.bySite(), { sort: "bytes" }).rows) {
        assert.equal(one.objectsOf("site", name, null, 1000).matching, count);
      }
    }
    for (const compare of [difference, differenceBySite]) {
      const rows = compare(before, after);
      assert.equal(sum(rows, "count"), after.objects - before.objects, compare.name);
      assert.equal(sum(rows, "bytes"), after.bytes - before.bytes, compare.name);
      assert.equal(new Set(rows.map(({ name }) => name)).size, rows.length);
    }
  }
});

test("the most frequent class of a place is named", () => {
  const one = snapshot([object(1, "A", 1, "/a.py", 3), object(2, "B", 1, "/a.py", 3), object(3, "B", 1, "/a.py", 3)]);
  assert.deepEqual(one.bySite(), [{ name: "/a.py:3", file: "/a.py", line: 3, count: 3, bytes: 3, kind: "B" }]);
});

test("the parts of the resident memory are never negative, and are all of it", () => {
  const random = chance(12);
  for (let round = 0; round < 500; round++) {
    const [resident, bytes] = [1 + Math.floor(random() * 1000), Math.floor(random() * 1500)];
    const traced = random() < 0.2 ? null : Math.floor(random() * 1500);
    const parts = partsOf(resident, { bytes, traced });
    assert.ok(parts.every((part) => part.bytes >= 0));
    assert.equal(parts.reduce((sum, part) => sum + part.bytes, 0), resident);
    assert.equal(parts.some(({ kind }) => kind === "traced"), traced !== null);
  }
});

test("a snapshot has the memory of the process that its parts report", () => {
  const { resident, traced } = snapshot([object(1, "A", 1, "", 0)], { resident: 10, traced: 4 }).summary();
  assert.deepEqual([resident, traced], [10, 4]);
  assert.equal(snapshot([object(1, "A", 1, "", 0)]).summary().traced, null);
});
