// Everything that one profiler told, live or from a file: takes messages, keeps the models of the views.

import { Decoder } from "@msgpack/msgpack";
import { CpuProfile } from "./cpu.js";
import { LiveObjects } from "./objects.js";
import { EventType, Field, PROTOCOL_MAJOR, parseNotice, textOf } from "./protocol.js";
import { DATA, REPLY, Recording, read } from "./recording.js";
import { IncomingSnapshot } from "./snapshots.js";
import { Timeline } from "./timeline.js";

const KEPT_PROCESSES = 5;

// The parts of a snapshot follow each other within a second or so; a debugger may hold its process for longer.
const SNAPSHOT_PATIENCE_SECONDS = 60;

let sessions = 0;

// Ids are decoded as doubles: those of 64 bits keep 53, more than an address has.
const decoder = new Decoder();

/** What belongs to one process: after a restart there is another. */
class Process {
  objects = new LiveObjects();
  cpu = new CpuProfile();
  facts = null; // of its handshake

  constructor(number, since) {
    this.number = number;
    this.since = since; // ms
  }

  /** Begin another CPU profile. */
  clearCpu() {
    this.cpu = new CpuProfile();
  }

  summary() {
    return { number: this.number, since: this.since, facts: this.facts, samples: this.cpu.samples };
  }
}

export class Session {
  number = ++sessions;
  recording = new Recording();
  timeline = new Timeline();
  snapshots = [];
  incoming = new Map(); // by correlation_id
  processes = [new Process(1, null)];
  messages = 0;
  bytes = 0;
  undecodable = 0;
  dropped = 0; // messages the bridge says it dropped because this page was too slow
  clients = null;
  lastTime = null; // ms, of the profiled process
  log = []; // {time, text} of what a person should know; the newest last
  version = 0; // grows with all that the header shows
  #counter = null;
  #snapshotNumber = 0;

  get process() {
    return this.processes.at(-1);
  }

  /** Take a published message. */
  publish(bytes, seconds = undefined) {
    const record = this.recording.add(DATA, null, bytes, seconds);
    this.messages++;
    this.bytes += bytes.length;
    let message;
    try {
      message = decoder.decode(bytes);
      if (message[Field.EVENT_TYPE] !== EventType.EVENT_COLLECTION) throw new Error("not an event_collection");
    } catch (error) {
      if (!this.undecodable++) this.#say(`A message could not be read: ${error.message}`);
      return;
    }
    this.lastTime = message[Field.TIMESTAMP];
    this.#count(message[Field.MESSAGE_COUNTER], message[Field.TIMESTAMP]);
    const dumps = new Set();
    for (const event of message[Field.PAYLOAD]) this.#take(event, dumps);
    for (const incoming of dumps) {
      incoming.records.push(record);
      if (incoming.complete) this.#finish(incoming);
    }
  }

  /** Take a reply; return its text, or null if it was a handshake. */
  reply(command, bytes, seconds = undefined) {
    this.recording.add(REPLY, command, bytes, seconds);
    this.version++;
    const text = textOf(bytes);
    if (text === null) this.#meet(decoder.decode(bytes)[Field.PAYLOAD]);
    return text;
  }

  /** Take a notice: its name and value. */
  notice(name, value, bytes, seconds = undefined) {
    this.recording.add(REPLY, null, bytes, seconds);
    this.version++;
    if (name === "client_count") this.clients = Number(value);
    if (name === "dropped") this.dropped += Number(value);
    if (name === "server" && value === "restarted") this.restart();
    if (name === "server" && value === "disconnected") this.#abandon("the profiler went away");
  }

  /** What follows is of another process. */
  restart() {
    if (this.process.since === null && !this.process.facts) return; // nothing is known of one before
    this.#abandon("the process was restarted");
    this.#counter = null;
    this.process.objects.end();
    this.timeline.restart((this.lastTime ?? Date.now()) / 1000);
    this.processes.push(new Process(this.process.number + 1, null));
    if (this.processes.length > KEPT_PROCESSES) this.processes.shift();
    this.#say("The profiled process was restarted. What is older belongs to the process before.");
  }

  /** The connection was lost: messages may be missing before the next. */
  interrupted() {
    this.#abandon("the connection was lost");
  }

  /** Look whether the rest of a snapshot still comes. */
  checkIncoming() {
    this.#abandon(`then nothing for ${SNAPSHOT_PATIENCE_SECONDS} s`, (incoming) => incoming.silentSeconds >= SNAPSHOT_PATIENCE_SECONDS);
  }

  /**
   * Read a file to its end; `progress` is told the bytes so far. Return null, or what is wrong with a file of which a part
   * could be read; throws of one that could not be read at all.
   */
  async load(file, progress) {
    try {
      await this.#read(file, progress);
      return null;
    } catch (error) {
      if (!this.messages) throw error;
      this.#say(error.message);
      return error.message;
    } finally {
      this.#abandon("the file ends there");
    }
  }

  async #read(file, progress) {
    let bytes = 0;
    for await (const [seconds, channel, command, payload] of read(file)) {
      bytes += payload.length;
      if (channel === DATA) this.publish(payload, seconds);
      else if (command !== null) this.reply(command, payload, seconds);
      else {
        const notice = parseNotice(textOf(payload) ?? "");
        if (notice) this.notice(...notice, payload, seconds);
      }
      progress(bytes);
    }
  }

  nextSnapshotNumber() {
    return ++this.#snapshotNumber;
  }

  /** Return the process of this number, or the newest. */
  processNumbered(number) {
    return this.processes.find((process) => process.number === number) ?? this.process;
  }

  #take(event, dumps) {
    switch (event[Field.EVENT_TYPE]) {
      case EventType.CPU_SAMPLE:
        this.process.since ??= event[Field.TIMESTAMP];
        this.process.cpu.add(event);
        break;
      case EventType.OBJECT_SPACE_DUMP:
        dumps.add(this.#dump(event));
        break;
      default:
        this.process.since ??= event[Field.TIMESTAMP];
        this.process.objects.add(event);
        this.timeline.add(event);
    }
  }

  #dump(event) {
    const correlation = event[Field.CORRELATION_ID];
    let incoming = this.incoming.get(correlation);
    if (incoming === undefined) {
      incoming = new IncomingSnapshot(correlation, event[Field.TIMESTAMP]);
      this.incoming.set(correlation, incoming);
    }
    incoming.add(event);
    this.version++;
    return incoming;
  }

  #finish(incoming) {
    this.incoming.delete(incoming.correlation);
    this.snapshots.push(incoming.finish(this.nextSnapshotNumber(), this.process.number));
    this.version++;
  }

  /** What has not come of a snapshot by now will not come. */
  #abandon(why, isMeant = () => true) {
    for (const incoming of [...this.incoming.values()].filter(isMeant)) {
      incoming.ending = why;
      this.#say(`Of a snapshot only ${incoming.objects} of ${incoming.expected} objects came: ${why}.`);
      this.#finish(incoming);
    }
  }

  #count(counter, time) {
    const expected = this.#counter;
    this.#counter = counter + 1;
    if (expected === null || counter === expected) return;
    if (counter < expected) {
      this.restart();
      this.#counter = counter + 1;
      return;
    }
    const missing = counter - expected;
    this.timeline.gap(time / 1000, missing);
    this.process.objects.uncertain = true;
    this.process.cpu.missing += missing;
    this.#abandon("messages are missing");
    this.version++;
  }

  #meet(facts) {
    const before = this.process.facts;
    if (before && before.pid !== facts.pid) this.restart();
    this.process.facts = facts;
    const version = String(facts.rbkit_protocol_version);
    if (!before && version.split(".")[0] !== PROTOCOL_MAJOR) {
      this.#say(`The profiler speaks protocol ${version}; this page knows ${PROTOCOL_MAJOR}. It may show wrong things.`);
    }
  }

  #say(text) {
    this.log.push({ time: this.lastTime ?? Date.now(), text });
    this.version++;
  }
}
