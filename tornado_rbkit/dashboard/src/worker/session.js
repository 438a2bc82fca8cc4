// The data of one profiler, live or from a file: takes messages and updates the models of the views. protocol.js reads
// messages first; no received message makes a method here throw.

import { CpuProfiles } from "../model/cpu/profiles.js";
import { Log } from "./log.js";
import { Unreadable } from "../connection/msgpack.js";
import { LiveObjects } from "../model/objects.js";
import { EventType, PROTOCOL_MAJOR, readMessage, readNotice, readReply } from "../connection/protocol.js";
import { DATA, REPLY, Recording, read } from "./recording.js";
import { IncomingSnapshot } from "../model/incoming.js";
import { Timeline } from "../model/timeline.js";
import { Vitals } from "../model/vitals.js";

const KEPT_PROCESSES = 5;

// Snapshots take most of the memory; beyond this the oldest is removed.
const KEPT_SNAPSHOTS = 30;
const KEPT_OBJECTS = 2 ** 26; // in all snapshots
const MAX_INCOMING = 8;

// The parts of a snapshot arrive within about a second of each other; a debugger may stop the process for longer.
const SNAPSHOT_PATIENCE_SECONDS = 60;

// Counters that decrease more often, by the messages' own times, do not mean restarts: publishers share the endpoint, or
// one does not count. Messages that waited arrive at once.
const RESTART_SECONDS = 1;

let sessions = 0;

/** The models of one process; a restart creates a new one. */
class Process {
  objects = new LiveObjects();
  cpuProfiles = new CpuProfiles();
  /** @type {import("../connection/protocol.js").Facts | null} */
  facts = null; // from its handshake

  constructor(number, since) {
    this.number = number;
    this.since = since; // ms
  }

  /** The CPU profile of the process's clock. */
  get cpu() {
    return this.cpuProfiles.current;
  }

  summary() {
    return { number: this.number, since: this.since, facts: this.facts, samples: this.cpu.samples };
  }
}

export class Session {
  number = ++sessions;
  recording = new Recording();
  timeline = new Timeline(); // of the memory profile
  vitals = new Vitals(); // of the process, whether or not anything is recorded
  /** @type {any[]} */
  snapshots = [];
  /** @type {any} */
  removed = null; // the snapshot that was removed last
  /** @type {Map<string, IncomingSnapshot>} */
  incoming = new Map(); // by correlation_id
  processes = [new Process(1, null)];
  messages = 0;
  bytes = 0;
  unreadable = 0; // number of messages, events and objects that could not be read
  dropped = 0; // messages that the bridge reported as dropped because this page was too slow
  /** @type {number | null} */
  clients = null;
  /** @type {number | null} */
  lastTime = null; // ms, of the profiled process
  log = new Log();
  /** @type {number | null} */
  #counter = null; // the next expected counter, null if unknown
  #isCounted = true; // whether counters reveal losses and restarts
  #fellAt = -Infinity; // s
  /** @type {string | null} */
  #chosenClock = null; // of the CPU profile, by the user of this page
  #snapshotNumber = 0;

  get process() {
    return this.processes[this.processes.length - 1];
  }

  /** Process a published message. */
  publish(bytes, seconds = undefined) {
    const record = this.recording.add(DATA, null, bytes, seconds);
    this.messages++;
    this.bytes += bytes.length;
    const message = this.#read("A message", () => readMessage(bytes));
    if (message === null) return;
    if (message.unreadable) this.#count(message.unreadable, "A part of a message could not be read: rbkit does not write such messages");
    const previousTime = this.lastTime;
    this.lastTime = message.time ?? previousTime;
    this.#follow(message.counter, seconds ?? (this.lastTime ?? 0) / 1000, previousTime);
    const before = this.timeline.setBack;
    for (const event of message.events) this.#take(event, record);
    if (this.timeline.setBack > before) this.#say("The profiled process's clock was set back: chart data with later times was removed.");
  }

  /** Process a reply; return its text, or null for a handshake. */
  reply(command, bytes, seconds = undefined) {
    this.recording.add(REPLY, command, bytes, seconds);
    const reply = this.#read(`The reply to ${command}`, () => readReply(command, bytes));
    if (reply === null) return `error:invalid-reply the reply to ${command} could not be read`;
    if (reply.facts) this.#meet(reply.facts, reply.time ?? null);
    const clock = /^use_(cpu|wall)_time$/.exec(command)?.[1];
    if (clock && !reply.text?.startsWith("error:")) this.#chosenClock = clock;
    return reply.text ?? null;
  }

  /** Process a notice, given as its name and value. */
  notice(name, value, bytes, seconds = undefined) {
    this.recording.add(REPLY, null, bytes, seconds);
    if (name === "client_count") this.clients = Number(value);
    if (name === "dropped") this.dropped += Number(value);
    if (name === "server" && value === "restarted") this.restart();
    if (name === "server" && value === "disconnected") this.#abandon("the profiler disconnected");
  }

  /** Count a message that is neither profiling data nor the reply to a pending command. */
  stray(what) {
    this.#count(1, `A message could not be read: ${what}`);
  }

  /** Start the data of another process. */
  restart() {
    this.#counter = null;
    this.#isCounted = true;
    if (this.process.since === null && !this.process.facts) return; // there is no data of an earlier process
    this.#abandon("the process was restarted");
    this.process.objects.end();
    this.vitals.restart();
    this.timeline.restart((this.lastTime ?? Date.now()) / 1000);
    this.processes.push(new Process(this.process.number + 1, null));
    if (this.processes.length > KEPT_PROCESSES) this.processes.shift();
    this.#say("The profiled process was restarted. Older data belongs to the previous process.");
  }

  /** Handle a lost connection: messages may be missing before the next message. */
  interrupted() {
    this.#isCounted = true;
    this.#abandon("the connection was lost");
  }

  /** Give up snapshots of which nothing has arrived for too long; to be called every second. */
  checkIncoming() {
    for (const incoming of this.incoming.values()) incoming.waitASecond();
    this.#abandon(`then nothing for ${SNAPSHOT_PATIENCE_SECONDS} s`, (incoming) => incoming.silentSeconds >= SNAPSHOT_PATIENCE_SECONDS);
  }

  /**
   * Read a file to its end; call `progress` with the bytes read so far. Return null, or an error text if only part of
   * the file could be read; throws if nothing could be read.
   */
  async load(file, progress) {
    try {
      await this.#load(file, progress);
      return null;
    } catch (error) {
      if (!this.messages || !(error instanceof Error)) throw error;
      this.#say(error.message);
      return error.message;
    } finally {
      this.#abandon("the file ends there");
    }
  }

  /**
   * Continue a session that was kept: replay its messages, and what the user did to the data. Messages may be missing
   * before the next one.
   *
   * @param {import("./keeper.js").Part[]} parts
   * @param {(action: import("./keeper.js").Action) => unknown} act
   * @param {(bytes: number) => void} progress
   */
  async restore(parts, act, progress) {
    let before = 0;
    for (const { bytes, action } of parts) {
      if (action) await act(action);
      else if (bytes) await this.#load(Object.assign(new Blob([bytes]), { name: "The kept session" }), (read) => progress(before + read));
      before += bytes?.length ?? 0;
    }
    this.interrupted();
    this.log = new Log(); // it was read before
  }

  async #load(file, progress) {
    let bytes = 0;
    for await (const [seconds, channel, command, payload] of read(file)) {
      bytes += payload.length;
      if (channel === DATA) this.publish(payload, seconds);
      else if (command !== null) this.reply(command, payload, seconds);
      else {
        const notice = readNotice(payload);
        if (notice) this.notice(...notice, payload, seconds);
        else this.stray("it is not a notice");
      }
      progress(bytes);
    }
  }

  /** Add a snapshot and number it. */
  keep(snapshot) {
    snapshot.number = ++this.#snapshotNumber;
    this.snapshots.push(snapshot);
    const count = () => this.snapshots.reduce((sum, { objects }) => sum + objects, 0);
    while (this.snapshots.length > KEPT_SNAPSHOTS || (this.snapshots.length > 1 && count() > KEPT_OBJECTS)) {
      const { number } = this.snapshots.shift();
      this.#say(`Snapshot ${number} was removed: at most ${KEPT_SNAPSHOTS} snapshots are kept, with ${KEPT_OBJECTS} objects in total.`);
    }
  }

  /** Remove a snapshot; the last one removed can be brought back. */
  remove(number) {
    this.removed = this.snapshots.find((one) => one.number === number) ?? this.removed;
    this.snapshots = this.snapshots.filter((one) => one.number !== number);
  }

  /** Bring back the snapshot that was removed last. */
  undoRemove() {
    if (this.removed !== null) this.snapshots = [...this.snapshots, this.removed].sort((a, b) => a.number - b.number);
    this.removed = null;
  }

  /** Return the process with this number, or the newest process. */
  processNumbered(number) {
    return this.processes.find((process) => process.number === number) ?? this.process;
  }

  /** Call a reader; count the message as unreadable and return null if the reader raises Unreadable. */
  #read(what, read) {
    try {
      return read();
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      this.#count(1, `${what} could not be read: ${error.message}`);
      return null;
    }
  }

  #count(unreadable, text) {
    if (!this.unreadable) this.#say(text);
    this.unreadable += unreadable;
  }

  #take(event, record) {
    switch (event.type) {
      case EventType.CPU_SAMPLE:
        this.process.since ??= event.time;
        this.process.cpuProfiles.add(event);
        break;
      case EventType.OBJECT_SPACE_DUMP:
        this.#dump(event, record);
        break;
      case EventType.GC_STATS: {
        // Ruby sends them only while memory is profiled, Python at all times, with a number of old objects while it is.
        const isOfProcess = this.vitals.add(event.time / 1000, event.figures);
        if (!isOfProcess || typeof event.figures.get("old_objects") === "number") this.#takeMemory(event);
        break;
      }
      default:
        this.#takeMemory(event);
    }
  }

  #takeMemory(event) {
    this.process.since ??= event.time;
    this.process.objects.add(event);
    this.timeline.add(event);
  }

  #dump(event, record) {
    let incoming = this.incoming.get(event.correlation);
    if (incoming === undefined) {
      const [oldest] = this.incoming.values();
      if (this.incoming.size >= MAX_INCOMING) this.#abandon("too many other snapshots began", (one) => one === oldest);
      incoming = new IncomingSnapshot(event.correlation, event.time);
      this.incoming.set(event.correlation, incoming);
    }
    incoming.add(event, record);
    if (incoming.complete) this.#finish(incoming);
  }

  #finish(incoming) {
    this.incoming.delete(incoming.correlation);
    if (incoming.omitted) this.#say(`A snapshot has more objects than this page can hold: ${incoming.omitted} of ${incoming.expected} are left out.`);
    try {
      this.keep(incoming.finish(this.process.number));
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#say(`The browser has no memory for a snapshot of ${incoming.objects} objects: ${error.message}.`);
    }
  }

  /** Finish incomplete snapshots with the objects that have arrived. */
  #abandon(why, isMeant = () => true) {
    for (const incoming of [...this.incoming.values()].filter(isMeant)) {
      incoming.ending = why;
      this.#say(`Only ${incoming.objects} of ${incoming.expected} objects of a snapshot arrived: ${why}.`);
      this.#finish(incoming);
    }
  }

  /** Detect lost messages and restarts by a message's counter; `previousTime` is the time of the message before, in ms. */
  #follow(counter, now, previousTime) {
    if (counter === null || !this.#isCounted) return;
    const expected = this.#counter;
    this.#counter = counter + 1;
    if (expected === null || counter === expected) return;
    if (counter < expected) {
      this.#fall(counter, now);
      return;
    }
    const missing = counter - expected;
    const time = this.lastTime ?? Date.now();
    this.timeline.gap((previousTime ?? time) / 1000, time / 1000, missing);
    this.process.objects.uncertain = true;
    this.process.cpu.missing += missing;
    this.#abandon("messages are missing");
  }

  #fall(counter, now) {
    const isRestart = Math.abs(now - this.#fellAt) >= RESTART_SECONDS; // the clock may have been set back
    this.#fellAt = now;
    if (isRestart) {
      this.restart();
      this.#counter = counter + 1;
      return;
    }
    this.#isCounted = false;
    this.#counter = null;
    this.#say("message_counter keeps decreasing, as with several publishers behind one endpoint: lost messages and restarts cannot be detected.");
  }

  /**
   * @param {import("../connection/protocol.js").Facts} facts
   * @param {number | null} time Of the handshake, in ms.
   */
  #meet(facts, time) {
    const before = this.process.facts;
    if (before && before.pid !== facts.pid) this.restart();
    const { cpuProfiles } = this.process;
    const hadSamples = this.process.cpu.samples > 0;
    const isOther = cpuProfiles.use(facts.clock_type, time);
    if (isOther && hadSamples && facts.clock_type !== this.#chosenClock) this.#say(`Another client chose the ${facts.clock_type} clock for the CPU profile. The profile before goes on when its clock is chosen again.`);
    this.process.facts = facts;
    const version = facts.rbkit_protocol_version;
    if (!before && version !== "(unknown)" && version.split(".")[0] !== PROTOCOL_MAJOR) {
      this.#say(`The profiler speaks protocol ${version}; this page supports ${PROTOCOL_MAJOR}. What it shows may be wrong.`);
    }
  }

  #say(text) {
    this.log.add(text);
  }
}
