// Dominators and retained sizes of a graph with millions of nodes, over typed arrays.
//
// An object dominates another if every path from the roots to the other leads through it: without it, the other would
// be freed. Its retained size is its own size and those of all objects that it dominates. The algorithm is SEMI-NCA
// (Georgiadis, Tarjan and Werneck, "Finding Dominators in Practice", 2006), a variant of Lengauer and Tarjan's.

export const NONE = 0xffffffff;

// Nodes handled between two reports of progress.
const REPORTED = 2 ** 16;

/**
 * A directed graph: the targets of node i are `targets[starts[i]]` to `targets[starts[i + 1] - 1]`, NONE for a target
 * outside the graph.
 *
 * @typedef {{ starts: Uint32Array, targets: Uint32Array }} Graph
 */

/** @param {Graph} graph @returns {Graph} the graph with all edges reversed */
export function reversed({ starts, targets }) {
  const count = starts.length - 1;
  const ends = new Uint32Array(count + 1);
  for (const to of targets) if (to !== NONE) ends[to + 1]++;
  for (let i = 0; i < count; i++) ends[i + 1] += ends[i];
  const sources = new Uint32Array(ends[count]);
  const next = ends.slice();
  for (let from = 0; from < count; from++) {
    for (let at = starts[from]; at < starts[from + 1]; at++) {
      if (targets[at] !== NONE) sources[next[targets[at]]++] = from;
    }
  }
  return { starts: ends, targets: sources };
}

/**
 * Return by node whether the roots reach it, and further roots that reach the remaining nodes: one node of each cycle that
 * nothing outside refers to.
 *
 * @param {Graph} graph
 * @param {ArrayLike<number>} roots
 */
export function cycleRoots(graph, roots) {
  const count = graph.starts.length - 1;
  const seen = new Uint8Array(count);
  const finished = new Uint32Array(count);
  let total = 0;
  for (let i = 0; i < roots.length; i++) total = search(graph, roots[i], seen, finished, total);
  const reached = total;
  for (let i = 0; i < count; i++) if (!seen[i]) total = search(graph, i, seen, finished, total);
  // The node that a depth-first search finishes last is in a component that no other component refers to.
  const cycles = [];
  for (let i = reached; i < total; i++) seen[finished[i]] = 0;
  const isReached = seen.slice();
  const scratch = new Uint32Array(count);
  for (let i = total - 1; i >= reached; i--) {
    if (seen[finished[i]]) continue;
    cycles.push(finished[i]);
    search(graph, finished[i], seen, scratch, 0);
  }
  return { cycles, isReached };
}

/** Visit all nodes that a root reaches and that were not seen; append them to `finished` when they are left. */
function search({ starts, targets }, root, seen, finished, total) {
  if (seen[root]) return total;
  seen[root] = 1;
  const stack = [root];
  const at = [starts[root]];
  while (stack.length) {
    const node = stack[stack.length - 1];
    const edge = at[at.length - 1]++;
    if (edge >= starts[node + 1]) {
      finished[total++] = node;
      stack.pop();
      at.pop();
    } else if (targets[edge] !== NONE && !seen[targets[edge]]) {
      seen[targets[edge]] = 1;
      stack.push(targets[edge]);
      at.push(starts[targets[edge]]);
    }
  }
  return total;
}

/**
 * Compute the immediate dominator of each node, `count` (a virtual node above all roots) for one that only the roots
 * dominate; every node must be reachable from the roots. Returns {order, dominators}: in `order` each node follows its
 * dominator. A generator of its progress, 0 to 1.
 *
 * @param {Graph} graph
 * @param {Graph} referrers the graph reversed
 * @param {ArrayLike<number>} roots
 * @returns {Generator<number, { order: Uint32Array, dominators: Uint32Array }>}
 */
export function* dominatorTree(graph, referrers, roots) {
  const count = graph.starts.length - 1;
  const isRoot = new Uint8Array(count);
  for (let i = 0; i < roots.length; i++) isRoot[roots[i]] = 1;
  const { order, numbers, parents } = numbered(graph, roots);
  yield 0.3;
  // From here on nodes are their numbers; 0 is the virtual node.
  const above = parents.slice();
  const semi = new Uint32Array(count + 1);
  const label = new Uint32Array(count + 1);
  for (let i = 0; i <= count; i++) semi[i] = label[i] = i;
  const path = [];

  /** Return the node with the least semidominator on the path above a node, and shorten the path. */
  const least = (node, linked) => {
    if (above[node] < linked) return label[node];
    path.length = 0;
    do {
      path.push(node);
      node = above[node];
    } while (above[node] >= linked);
    let best = label[node];
    const top = above[node];
    while (path.length) {
      node = /** @type {number} */ (path.pop());
      above[node] = top;
      if (semi[best] < semi[label[node]]) label[node] = best;
      else best = label[node];
    }
    return label[node];
  };

  for (let node = count; node >= 1; node--) {
    const object = order[node - 1];
    let lowest = isRoot[object] ? 0 : parents[node];
    for (let at = referrers.starts[object]; at < referrers.starts[object + 1]; at++) {
      const other = semi[least(numbers[referrers.targets[at]], node + 1)];
      if (other < lowest) lowest = other;
    }
    semi[node] = lowest;
    if (node % REPORTED === 0) yield 0.3 + 0.6 * (1 - node / count);
  }
  const dominators = new Uint32Array(count);
  const immediate = parents;
  for (let node = 1; node <= count; node++) {
    while (immediate[node] > semi[node]) immediate[node] = immediate[immediate[node]];
    dominators[order[node - 1]] = immediate[node] === 0 ? count : order[immediate[node] - 1];
  }
  yield 1;
  return { order, dominators };
}

/** Number the nodes from 1 in the order of a depth-first search; `order` has the node of number i + 1. */
function numbered({ starts, targets }, roots) {
  const count = starts.length - 1;
  const order = new Uint32Array(count);
  const numbers = new Uint32Array(count); // 0 before it is visited
  const parents = new Uint32Array(count + 1); // numbers
  const stack = new Uint32Array(count);
  const next = starts.slice(0, count);
  let total = 0;
  for (let i = 0; i < roots.length; i++) {
    if (numbers[roots[i]]) continue;
    let depth = 0;
    stack[0] = roots[i];
    order[total] = roots[i];
    numbers[roots[i]] = ++total;
    while (depth >= 0) {
      const node = stack[depth];
      if (next[node] >= starts[node + 1]) {
        depth--;
        continue;
      }
      const to = targets[next[node]++];
      if (to === NONE || numbers[to]) continue;
      stack[++depth] = to;
      order[total] = to;
      numbers[to] = ++total;
      parents[total] = numbers[node];
    }
  }
  if (total !== count) throw new Error(`${count - total} nodes cannot be reached from the roots`);
  return { order, numbers, parents };
}

/** @param {{ order: Uint32Array, dominators: Uint32Array }} tree @param {ArrayLike<number>} sizes */
export function retainedSizes({ order, dominators }, sizes) {
  const retained = Float64Array.from(sizes);
  for (let i = order.length - 1; i >= 0; i--) {
    const to = dominators[order[i]];
    if (to < order.length) retained[to] += retained[order[i]];
  }
  return retained;
}
