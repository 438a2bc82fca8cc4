// The page's other thread: it receives, decodes and counts, and the page asks it for what it shows.

import { Connection } from "./model/connection.js";
import { Session } from "./model/session.js";
import { difference, select } from "./model/snapshots.js";

const OBJECTS_SHOWN = 100;

// Other viewers' commands change what is recorded, which only a handshake tells.
const HANDSHAKE_SECONDS = 5;

const CHECK_SECONDS = 1;

let session = new Session();
let connection = null;
let source = null; // {url} or {file, bytes, size}
let asked = 0; // commands of the page's user that have no reply yet

const methods = {
  /** Follow a profiler, with an empty session. */
  connect(url) {
    connection?.close();
    session = new Session();
    source = { url };
    const mine = session; // what comes late belongs to the session it was asked in
    connection = new Connection(url, {
      publish: (bytes) => mine.publish(bytes),
      reply: (command, bytes) => mine.reply(command, bytes),
      notice: (name, value, bytes) => mine.notice(name, value, bytes),
      interrupted: () => mine.interrupted(),
      changed: () => mine.version++,
    });
  },

  /** Try again now. */
  reconnect() {
    connection?.open();
  },

  /** Send a command; return null, or why it was not carried out. */
  async command(name) {
    asked++;
    try {
      const text = await connection.request(name);
      if (name !== "handshake") askWhatIsRecorded();
      return text?.startsWith("error:") ? text.slice(text.indexOf(" ") + 1) : null;
    } catch (error) {
      return error.message;
    } finally {
      asked--;
      session.version++;
    }
  },

  /** Return what is always in view. */
  header() {
    const { facts } = session.process;
    return {
      state: connection?.state ?? "file",
      reason: connection?.reason ?? "",
      retryAt: connection?.retryAt ?? null,
      pending: asked,
      session: session.number,
      source,
      facts,
      clients: session.clients,
      processes: session.processes.map((process) => process.summary()),
      messages: session.messages,
      bytes: session.bytes,
      missing: session.timeline.missing,
      dropped: session.dropped,
      undecodable: session.undecodable,
      log: session.log,
      recorded: session.recording.bytes,
      notKept: session.recording.dropped,
      lastTime: session.lastTime,
    };
  },

  memory({ from, to }) {
    return session.timeline.range(from, to);
  },

  objects({ process, ...query }) {
    return session.processNumbered(process).objects.rows(query);
  },

  setBaseline({ process }) {
    session.processNumbered(process).objects.setBaseline();
  },

  snapshots() {
    return {
      list: session.snapshots.map((snapshot) => ({ ...snapshot.summary(), from: snapshot.from ?? null })),
      incoming: [...session.incoming.values()].map(({ objects, expected, silentSeconds }) => ({ objects, expected, silentSeconds })),
    };
  },

  snapshotClasses({ number, ...query }) {
    return select(snapshot(number).byClass(), query);
  },

  snapshotDifference({ before, after, ...query }) {
    return select(difference(snapshot(before), snapshot(after)), query);
  },

  snapshotObjects({ number, butNotIn = null, name, offset = 0 }) {
    const other = butNotIn === null ? null : snapshot(butNotIn);
    return snapshot(number).objectsOf(name, other, offset, OBJECTS_SHOWN);
  },

  snapshotObject({ number, id }) {
    return snapshot(number).object(id, OBJECTS_SHOWN);
  },

  snapshotFile({ number }) {
    return snapshot(number).file;
  },

  removeSnapshot({ number }) {
    session.snapshots.splice(session.snapshots.indexOf(snapshot(number)), 1);
  },

  /** Add the snapshots of a file to those that are there; return how many, and what is wrong with the file or null. */
  async addSnapshots(file) {
    const into = session;
    const loaded = new Session();
    const damage = await loaded.load(file, () => {});
    for (const snapshot of loaded.snapshots) {
      snapshot.number = into.nextSnapshotNumber();
      snapshot.from = file.name;
      into.snapshots.push(snapshot);
    }
    return { count: loaded.snapshots.length, damage };
  },

  flame({ process, thread, path }) {
    const { cpu } = session.processNumbered(process);
    return { ...cpu.flame(thread, path), ...cpuSummary(cpu) };
  },

  functions({ process, ...query }) {
    return session.processNumbered(process).cpu.table(query);
  },

  functionDetails({ process, index, thread }) {
    return session.processNumbered(process).cpu.details(index, thread);
  },

  clearCpu({ process }) {
    session.processNumbered(process).clearCpu();
  },

  exportCpu({ process, format, name }) {
    const { cpu } = session.processNumbered(process);
    return format === "speedscope" ? JSON.stringify(cpu.speedscope(name)) : cpu.collapsed();
  },

  /** Return everything that was received, as a file. */
  sessionFile() {
    return session.recording.toBlob();
  },

  /** Show a file instead of a profiler. */
  async open(file) {
    const loaded = new Session();
    const before = source;
    source = { ...before, file: file.name, bytes: 0, size: file.size };
    let damage;
    try {
      damage = await loaded.load(file, (bytes) => (source.bytes = bytes));
    } catch (error) {
      source = before;
      throw error;
    }
    connection?.close();
    connection = null;
    session = loaded;
    source = { file: file.name, bytes: file.size, size: file.size, damage };
  },
};

setInterval(() => {
  if (connection !== null && !connection.pending.length && (connection.state === "live" || connection.state === "waiting")) {
    askWhatIsRecorded();
  }
}, HANDSHAKE_SECONDS * 1000);
setInterval(() => session.checkIncoming(), CHECK_SECONDS * 1000);

self.onmessage = async ({ data: { call, method, argument } }) => {
  try {
    self.postMessage({ call, result: await methods[method](argument) });
  } catch (error) {
    self.postMessage({ call, error: error.message });
  }
};

function askWhatIsRecorded() {
  connection?.request("handshake").catch(() => {}); // not connected, which the state says
}

function snapshot(number) {
  const found = session.snapshots.find((one) => one.number === number);
  if (found === undefined) throw new Error(`snapshot ${number} is not here any more`);
  return found;
}

function cpuSummary(cpu) {
  const { samples, first, last, missing } = cpu;
  return { threads: cpu.threadList(), samples, first, last, missing };
}
