// The page's worker thread: receives, decodes and counts, and answers the page's requests for data to show.

import { Connection } from "../connection/connection.js";
import { Keeper } from "./keeper.js";
import { collapsed, speedscope } from "../model/cpu/exports.js";
import { Session } from "./session.js";
import { findCauses, findStanding } from "../model/cpu/causes.js";
import { findTaskWaits } from "../model/cpu/tasks.js";
import { findBusy, findWait } from "../model/cpu/waits.js";
import { openStore } from "./store.js";
import { findSuspects } from "../model/leaks.js";
import { difference, differenceBySite, select } from "../model/differences.js";

const REFERENCES_SHOWN = 100;
const WAYS_SHOWN = 20;
const ANSWERS = 3; // of each question in the overview

const TICK_SECONDS = 1;

let session = new Session();
/** @type {Connection | null} */
let connection = null;
/** @type {any} */
let source = null; // {url} or {file, bytes, size, damage}; null before there is a profiler to follow
/** @type {any} */
let loading = null; // the same for a file that is being read
/** @type {Keeper | null} */
let keeper = null; // of this tab
let keptTarget = "";
/** @type {Promise<void> | null} */
let restoring = null; // while the session before a reload is read
let choices = 0; // counts the sources chosen; the result of an earlier choice is not shown
/** @type {ReturnType<typeof findSuspects> | null} */
let found = null; // by the last comparison
let asked = 0; // number of the user's commands without a reply

/** @type {Record<string, (argument: any, session: Session) => any>} */
const actions = {
  setBaseline({ process }, { processes }) {
    processes.find(({ number }) => number === process)?.objects.setBaseline();
  },

  clearCpu({ process }, { processes }) {
    processes.find(({ number }) => number === process)?.cpuProfiles.clear();
  },

  undoClearCpu({ process }, { processes }) {
    processes.find(({ number }) => number === process)?.cpuProfiles.undoClear();
  },

  removeSnapshot({ number }, session) {
    session.remove(number);
  },

  undoRemoveSnapshot(_, session) {
    session.undoRemove();
  },

  /** Add the snapshots of a file to the session; return how many, and an error text or null. */
  async addSnapshots(file, session) {
    const loaded = new Session();
    const damage = await loaded.load(file, () => {});
    for (const snapshot of loaded.snapshots) {
      snapshot.from = file.name;
      session.keep(snapshot);
    }
    return { count: loaded.snapshots.length, damage };
  },
};

/** @type {Record<string, (argument: any) => any>} */
const methods = {
  /** Follow a profiler: continue the session that this tab had with it, or begin one. */
  connect({ tab, target, url, named }) {
    const choice = ++choices;
    connection?.close();
    connection = null;
    loading = null;
    keeper ??= new Keeper(openStore(), tab);
    session = new Session();
    found = null;
    source = { url };
    const mine = session; // late messages belong to the session of their connection
    restoring = restore(mine, target).finally(() => {
      if (choice !== choices) return;
      restoring = null;
      connection = new Connection(url, {
        publish: (bytes) => mine.publish(bytes),
        reply: (command, bytes) => mine.reply(command, bytes),
        notice: (name, value, bytes) => mine.notice(name, value, bytes),
        stray: (what) => mine.stray(what),
        interrupted: () => mine.interrupted(),
      }, named);
    });
  },

  /** Follow nothing. */
  leave() {
    choices++;
    connection?.close();
    connection = restoring = loading = source = found = null;
    session = new Session();
  },

  /** Reconnect now. */
  reconnect() {
    connection?.open();
  },

  /** Send a command to the profiler of a session, unless another one is followed; return null, or why it was not carried out. */
  async command({ name, session: meant }) {
    if (meant !== session.number) return "another profiler is in view by now";
    const to = connection;
    if (to === null) return source ? "this is a file" : "there is no profiler";
    asked++;
    try {
      const text = await to.request(name);
      if (name !== "handshake") to.request("handshake").catch(() => {}); // not connected, which the state shows
      return text?.startsWith("error:") ? text.slice(text.indexOf(" ") + 1) : null;
    } catch (error) {
      return messageOf(error);
    } finally {
      asked--;
    }
  },

  /** Return the data of the page's header. */
  header() {
    const { facts } = session.process;
    return {
      state: connection?.state ?? (restoring ? "connecting" : source ? "file" : "absent"),
      reason: connection?.reason ?? "",
      retryAt: connection?.retryAt ?? null,
      pending: asked,
      session: session.number,
      source: loading ?? source,
      facts,
      clients: session.clients,
      processes: session.processes.map((process) => process.summary()),
      messages: session.messages,
      bytes: session.bytes,
      missing: session.timeline.missing,
      dropped: session.dropped,
      unreadable: session.unreadable,
      log: session.log.lines,
      leftOut: session.log.leftOut,
      recorded: session.recording.bytes,
      notKept: session.recording.dropped,
      lastTime: session.lastTime,
      losesOnReload: session.messages > 0 && (source?.file !== undefined || keeper?.trouble != null),
    };
  },

  /** Return the figures of the process, and the first answers to who holds memory, computes and is allocated. */
  overview({ from, to, process }) {
    const { cpuProfiles, objects, facts } = session.processNumbered(process);
    const { gaps, restarts } = session.timeline.range(from, to);
    const growing = objects.rows({ sort: "rate", limit: ANSWERS }).rows.filter(({ rate }) => rate > 0);
    return {
      first: session.vitals.times[0] ?? null,
      vitals: session.vitals.range(from, to),
      latest: session.vitals.latest,
      snapshots: snapshotsBetween(from, to),
      gaps,
      restarts,
      cpu: answerOfCpu(cpuProfiles, facts, session.vitals.latest),
      growing: growing.map(({ name, live, growth, rate }) => ({ name, live, growth, rate })),
      found,
    };
  },

  memory({ from, to }) {
    return { ...session.timeline.range(from, to), snapshots: snapshotsBetween(from, to) };
  },

  objects({ process, ...query }) {
    return session.processNumbered(process).objects.rows(query);
  },

  snapshots() {
    return {
      list: session.snapshots.map((snapshot) => ({ ...snapshot.summary(), from: snapshot.from ?? null })),
      canUndo: session.removed !== null,
      incoming: [...session.incoming.values()].map(({ objects, expected, silentSeconds }) => ({ objects, expected, silentSeconds })),
    };
  },

  // Requests about a snapshot wait until it is computed who holds its objects; they return null if it was removed.

  /** Return the rows of a snapshot by class, or by the place where objects were made. */
  async snapshotRows({ number, by, ...query }) {
    const one = await computed(number);
    return one && (by === "class" ? select(one.byClass(), query) : select(one.bySite(), query));
  },

  async snapshotDifference({ before, after, by, ...query }) {
    const [one, other] = [await computed(before), await computed(after)];
    return one && other && (by === "class" ? select(difference(one, other), query) : select(differenceBySite(one, other), query));
  },

  async snapshotObjects({ number, butNotIn = null, by, name, limit }) {
    const one = await computed(number);
    const other = snapshot(butNotIn);
    return one && (other || butNotIn === null) ? one.objectsOf(by, name, other, limit) : null;
  },

  async snapshotWays({ number, name }) {
    const one = await computed(number);
    return one && one.waysOf(name, WAYS_SHOWN);
  },

  async snapshotObject({ number, id }) {
    const one = await computed(number);
    return one && one.object(id, REFERENCES_SHOWN);
  },

  /** Return what grew between two snapshots. */
  async suspects({ before, after }) {
    const [one, other] = [await computed(before), await computed(after)];
    if (!one || !other) return null;
    found = findSuspects(one.holders, other.holders);
    return found;
  },

  snapshotFile({ number }) {
    return snapshot(number)?.file ?? null;
  },

  cpuOverview({ process, idle }) {
    const { cpu, cpuProfiles } = session.processNumbered(process);
    const { number, samples, omitted, merged, elapsed, missing, period } = cpu;
    return { profile: number, samples, omitted, merged, elapsed, missing, period, canUndoClear: cpuProfiles.canUndoClear, threads: cpu.threadList(idle), tasks: cpu.taskList(idle), strip: cpu.strip(idle) };
  },

  flame({ process, ...query }) {
    return session.processNumbered(process).cpu.flame(query);
  },

  sandwich({ process, ...query }) {
    return session.processNumbered(process).cpu.sandwich(query);
  },

  functions({ process, ...query }) {
    return session.processNumbered(process).cpu.table(query);
  },

  functionDetails({ process, index, ...query }) {
    return session.processNumbered(process).cpu.details(index, query);
  },

  findFunction({ process, name }) {
    return session.processNumbered(process).cpu.find(name);
  },

  exportCpu({ process, format, name }) {
    const { cpu } = session.processNumbered(process);
    return format === "speedscope" ? speedscope(cpu, name) : collapsed(cpu);
  },

  /** Return all recorded messages as a file. */
  sessionFile() {
    return session.recording.toBlob();
  },

  /** Show a file instead of a profiler. */
  async open(file) {
    const choice = ++choices;
    const loaded = new Session();
    const progress = { file: file.name, bytes: 0, size: file.size };
    loading = progress;
    let damage;
    try {
      damage = await loaded.load(file, (bytes) => (progress.bytes = bytes));
    } finally {
      if (loading === progress) loading = null;
    }
    if (choice !== choices) return;
    connection?.close();
    connection = null;
    session = loaded;
    found = null;
    source = { ...progress, bytes: file.size, damage };
  },
};

for (const [name, act] of Object.entries(actions)) {
  methods[name] = (argument) => {
    if (connection !== null) keeper?.add({ target: keptTarget, action: [name, argument] });
    return act(argument, session);
  };
}

setInterval(() => {
  connection?.tick();
  keeper?.flush();
  session.checkIncoming();
}, TICK_SECONDS * 1000);

self.onmessage = async ({ data: { call, method, argument } }) => {
  try {
    self.postMessage({ call, result: await methods[method](argument) });
  } catch (error) {
    self.postMessage({ call, error: messageOf(error) });
  }
};

/**
 * Continue the kept session of a target, and keep what follows.
 *
 * @param {Session} mine
 * @param {string} target
 */
async function restore(mine, target) {
  keptTarget = target;
  const kept = keeper;
  const parts = (await kept?.read(target)) ?? [];
  const progress = { file: "The session before the reload", bytes: 0, size: parts.reduce((sum, { bytes }) => sum + (bytes?.length ?? 0), 0) };
  if (parts.length) loading = progress;
  try {
    await mine.restore(parts, ([name, argument]) => actions[name](argument, mine), (bytes) => (progress.bytes = bytes));
  } catch (error) {
    mine.log.add(`The session before the reload is shown in part: ${messageOf(error)}.`);
  } finally {
    if (loading === progress) loading = null;
  }
  mine.recording.onrecord = (record) => kept?.add({ target, record });
}

/**
 * Return what uses the CPU, by the CPU clock if there are samples of it, and where threads wait, also for one another.
 *
 * @param {import("../model/cpu/profiles.js").CpuProfiles} profiles
 * @param {import("../connection/protocol.js").Facts | null} facts
 * @param {import("../model/vitals.js").Figures | null} latest
 */
function answerOfCpu(profiles, facts, latest) {
  const [wall, computing] = [profiles.of("wall"), profiles.of("cpu")];
  const isByCpu = Boolean(computing?.samples);
  const shown = isByCpu && computing ? computing : profiles.current;
  const interval = facts?.cpu_interval ? 1000 * facts.cpu_interval : null;
  const { functions, waiting } = findBusy(shown, isByCpu ? wall : null, interval);
  const sum = (/** @type {{self: number}[]} */ rows) => rows.reduce((all, { self }) => all + self, 0);
  return {
    ...{ causes: findCauses(shown, functions).slice(0, ANSWERS), computing: sum(functions), samples: shown.samples, isByCpu },
    ...{ waiting: waiting.slice(0, ANSWERS).map(({ label }) => label), inWaits: sum(waiting) },
    wait: wall && findWait(wall, computing, interval),
    standing: wall && findStanding(wall, latest?.cpu ?? null),
    tasks: wall && findTaskWaits(wall),
  };
}

/** @param {unknown} error */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}

async function computed(number) {
  const one = snapshot(number);
  await one?.holdInSlices();
  return one;
}

function snapshotsBetween(from, to) {
  return session.snapshots.map(({ number, time }) => ({ number, time: time / 1000 })).filter(({ time }) => time >= from && time <= to);
}

function snapshot(number) {
  return session.snapshots.find((one) => one.number === number) ?? null;
}
