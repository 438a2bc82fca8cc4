// Dominators and retained sizes, against the definition: the objects that are unreachable without an object.

import assert from "node:assert/strict";
import { test } from "node:test";
import { NONE, cycleRoots, dominatorTree, retainedSizes, reversed } from "../../../tornado_rbkit/dashboard/src/model/dominators.js";
import { chance } from "./rbkit.mjs";

const graphOf = (lists) => ({ starts: Uint32Array.from([0, ...lists.map((_, i) => lists.slice(0, i + 1).flat().length)]), targets: Uint32Array.from(lists.flat()) });

function run(steps) {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
    assert.ok(value >= 0 && value <= 1);
  }
}

/** Return the nodes that the roots reach, one node left out. */
function reach(lists, roots, without = -1) {
  const seen = new Set();
  const waiting = roots.filter((root) => root !== without);
  while (waiting.length) {
    const node = waiting.pop();
    if (seen.has(node)) continue;
    seen.add(node);
    waiting.push(...lists[node].filter((to) => to !== NONE && to !== without));
  }
  return seen;
}

function check(lists, roots, sizes) {
  const graph = graphOf(lists);
  const { cycles, isReached } = cycleRoots(graph, roots);
  assert.deepEqual([...isReached.keys()].filter((node) => isReached[node]), [...reach(lists, roots)].sort((a, b) => a - b));
  const all = [...roots, ...cycles];
  const everything = reach(lists, all);
  assert.equal(everything.size, lists.length, "every object is reached");
  const tree = run(dominatorTree(graph, reversed(graph), all));
  const retained = retainedSizes(tree, sizes);
  const dominated = lists.map((_, node) => [...everything].filter((other) => !reach(lists, all, node).has(other)));
  for (let node = 0; node < lists.length; node++) {
    assert.equal(retained[node], dominated[node].reduce((sum, other) => sum + sizes[other], 0), `retained by ${node}`);
    const above = lists.map((_, other) => other).filter((other) => other !== node && dominated[other].includes(node));
    const nearest = above.find((one) => above.every((other) => dominated[other].includes(one))) ?? lists.length;
    assert.equal(tree.dominators[node], nearest, `dominator of ${node}`);
  }
}

for (let seed = 1; seed <= 300; seed++) {
  test(`random graph ${seed}`, () => {
    const random = chance(seed);
    const count = 1 + Math.floor(random() * 14);
    const edges = random() * 3;
    const nodes = Array.from({ length: count }, (_, i) => i);
    const lists = nodes.map(() => Array.from({ length: Math.floor(random() * edges) }, () => (random() < 0.05 ? NONE : random.of(nodes))));
    const roots = [...new Set(nodes.filter(() => random() < 0.2))];
    check(lists, roots, nodes.map(() => Math.floor(random() * 100)));
  });
}

test("one node of each unreferenced cycle becomes a root", () => {
  //   0 → 1    2 ⇄ 3 → 4 ⇄ 5    6 → 6
  const lists = [[1], [], [3], [2, 4], [5], [4], [6]];
  const { cycles: found } = cycleRoots(graphOf(lists), [0]);
  assert.equal(found.length, 2);
  assert.ok(found.includes(6) && (found.includes(2) || found.includes(3)));
});

test("a doubly linked list and a hub of a million objects take seconds", () => {
  const count = 1_000_000;
  const starts = new Uint32Array(count + 1);
  const targets = [];
  for (let i = 0; i < count; i++) {
    if (i + 1 < count) targets.push(i + 1);
    if (i > 0) targets.push(i - 1, 0);
    starts[i + 1] = targets.length;
  }
  const graph = { starts, targets: Uint32Array.from(targets) };
  assert.deepEqual(cycleRoots(graph, [0]).cycles, []);
  const tree = run(dominatorTree(graph, reversed(graph), [0]));
  const retained = retainedSizes(tree, new Uint8Array(count).fill(1));
  for (const node of [0, 1, 1000, count - 1]) assert.equal(retained[node], count - node);
});
