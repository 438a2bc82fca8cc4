// What grows between two snapshots: the ways in which more objects are held, ranked by the growth of what they retain.

import { foldedAs } from "./cpu/functions.js";
import { NONE } from "./dominators.js";
import { CONTAINERS, ROOT_CLASSES, TASK_CLASSES, shortName } from "./holders.js";

const SHOWN = 20;

/** Ways that grow by less than this share of the largest growth are noise. */
const LEAST_SHARE = 0.001;

/** The same for ways of fewer than so many more objects. */
const LEAST_SHARE_OF_FEW = 0.01;
const FEW = 10;

/** Of the growth of what its objects retain, the share that new objects must have, or the objects themselves by their size. */
const LEAST_OWN_SHARE = 0.5;

/** In bytes, where there are no more objects than before: the lists and buffers of any program vary in size. */
const LEAST_IN_PLACE = 4096;

/** Of what a new container retains, the share from which on its items are the suspects. */
const MOST_OF_IT = 0.8;

/** The same of one that grows in place: its table grows by leaps. */
const PART_OF_IT = 0.2;

/**
 * Return the suspects, the most growth first, and the growth of all objects in bytes. Suspects are ways whose objects are
 * new, or grow in place as a buffer does; not those that have always held the container of what is new. Of a way and of
 * what its objects hold in turn only the first is a suspect, and of the ways of one holder the first.
 *
 * @param {import("./holders.js").Holders} before
 * @param {import("./holders.js").Holders} after
 */
export function findSuspects(before, after) {
  const seconds = Math.max(1, (after.snapshot.time - before.snapshot.time) / 1000);
  const earlier = new Map();
  for (let way = 0; way < before.wayParents.length; way++) earlier.set(before.wayKey(way), way);
  const fresh = retainedByNew(before.snapshot, after);
  const grown = [];
  for (let way = 0; way < after.wayParents.length; way++) {
    const old = earlier.get(after.wayKey(way));
    const was = (column) => (old === undefined ? 0 : before.byWay[column][old]);
    const count = after.byWay.count[way] - was("count");
    const retained = after.byWay.retained[way] - was("retained");
    const bytes = after.byWay.bytes[way] - was("bytes");
    const isNew = count > 0 && fresh[way] >= LEAST_OWN_SHARE * retained;
    const isLarger = bytes >= LEAST_IN_PLACE && bytes >= LEAST_OWN_SHARE * retained;
    if (retained > 0 && count >= 0 && (isNew || isLarger)) grown.push({ way, count, retained });
  }
  grown.sort((a, b) => b.retained - a.retained);
  const total = after.snapshot.bytes - before.snapshot.bytes;
  const chosen = new Set();
  const byHolder = new Map();
  const suspects = [];
  for (const { way, count, retained } of grown) {
    if (suspects.length >= SHOWN || retained < LEAST_SHARE * grown[0].retained) break;
    if (count < FEW && retained < LEAST_SHARE_OF_FEW * grown[0].retained) continue;
    if (isOfTheProfiler(after, way) || isBelow(after, way, chosen) || isWrapper(after, { way, count, retained }, grown)) continue;
    chosen.add(way);
    const suspect = describe(after, way, { count, retained, seconds });
    const first = byHolder.get(suspect.holder);
    if (first !== undefined && suspect.holder !== null) {
      first.also.push({ what: suspect.what, isFunction: suspect.isFunction, isFrame: suspect.isFrame, count: suspect.count });
      continue;
    }
    byHolder.set(suspect.holder, suspect);
    suspects.push(suspect);
  }
  return { suspects, total, seconds };
}

/** Return by way the sum of what objects retain that are not in an earlier snapshot. */
function retainedByNew(before, { snapshot, ways, retained, wayParents }) {
  const { ids, classes, classNames } = snapshot;
  const sums = new Float64Array(wayParents.length);
  for (let i = 0; i < snapshot.objects; i++) if (!before.has(ids[i], classNames[classes[i]])) sums[ways[i]] += retained[i];
  return sums;
}

/** Return whether a way is a call of the code that starts the program, or of the profiler: the frames of both are new to a snapshot. */
function isOfTheProfiler({ snapshot, wayExamples }, way) {
  const example = wayExamples[way];
  return snapshot.classNames[snapshot.classes[example]] === "frame" && foldedAs("", snapshot.fileNames[snapshot.files[example]] ?? "") !== null;
}

function isBelow(holders, way, chosen) {
  for (let each = holders.wayParents[way]; each !== NONE; each = holders.wayParents[each]) if (chosen.has(each)) return true;
  return false;
}

/** Return whether a way is one container whose growth is that of its items: "151 bytes in BLOBS" says more than "1 list". */
function isWrapper(holders, { way, count, retained }, grown) {
  const { snapshot, byWay, wayExamples, wayParents } = holders;
  if (byWay.count[way] > 1 || !CONTAINERS.has(snapshot.classNames[snapshot.classes[wayExamples[way]]])) return false;
  const least = (count ? MOST_OF_IT : PART_OF_IT) * retained;
  return grown.some((one) => wayParents[one.way] === way && byWay.count[one.way] > 1 && one.retained >= least);
}

function describe(holders, way, growth) {
  const { snapshot } = holders;
  const parent = holders.wayParents[way];
  const example = largest(holders, way);
  const kind = holders.kindText(holders.wayKinds[way]);
  return {
    way,
    id: snapshot.ids[example],
    name: snapshot.classNames[snapshot.classes[example]],
    what: shortName(kind),
    isFunction: snapshot.classNames[snapshot.classes[example]] === "function",
    isFrame: snapshot.classNames[snapshot.classes[example]] === "frame",
    holder: parent === NONE ? null : holders.wayText(growth.count ? parent : way), // of one that grows in place its own name
    count: holders.byWay.count[way],
    retained: holders.byWay.retained[way],
    unreachable: holders.byWay.unreachable[way],
    unheld: unheldRoot(holders, way),
    countGrowth: growth.count,
    retainedGrowth: growth.retained,
    perSecond: growth.count / growth.seconds,
    bytesPerSecond: growth.retained / growth.seconds,
    file: snapshot.fileNames[snapshot.files[example]],
    line: snapshot.lines[example],
    evidence: evidence(holders, example),
    also: /** @type {{ what: string, isFunction: boolean, isFrame: boolean, count: number }[]} */ ([]), // what else the same holder holds
  };
}

/** Return the class at the beginning of a holder if nothing in the snapshot holds it, null if it has a known beginning. */
function unheldRoot(holders, way) {
  if (holders.wayParents[way] === NONE) return null;
  let root = way;
  while (holders.wayParents[root] !== NONE) root = holders.wayParents[root];
  const name = holders.snapshot.classNames[holders.snapshot.classes[holders.wayExamples[root]]];
  return ROOT_CLASSES.has(name) || TASK_CLASSES.has(name) || holders.byWay.unreachable[root] ? null : shortName(name);
}

/** Return the object of a way that retains most. */
function largest({ snapshot, ways, retained }, way) {
  let best = -1;
  for (let i = 0; i < snapshot.objects; i++) if (ways[i] === way && (best < 0 || retained[i] > retained[best])) best = i;
  return best;
}

/** Return the path through an object to the largest object that it retains. */
function evidence(holders, index) {
  const { children, retained, snapshot } = holders;
  let at = index;
  for (;;) {
    let heaviest = NONE;
    for (let i = children.starts[at]; i < children.starts[at + 1]; i++) {
      const child = children.targets[i];
      if (heaviest === NONE || retained[child] > retained[heaviest]) heaviest = child;
    }
    if (heaviest === NONE || retained[heaviest] <= snapshot.sizes[at]) break;
    at = heaviest;
  }
  return { path: holders.pathText(at), name: shortName(snapshot.classNames[snapshot.classes[at]]), size: snapshot.sizes[at] };
}
