// The rbkit 2.1 wire format, with the numbers of the Python package tornado_rbkit.protocol. Reads messages into the models' types.

import { STATES, readUsual } from "./events.js";
import { Unreadable, decode, isMap } from "./msgpack.js";

export const EventType = {
  OBJ_CREATED: 0,
  OBJ_DESTROYED: 1,
  GC_START: 2,
  GC_END_M: 3,
  GC_END_S: 4,
  OBJECT_SPACE_DUMP: 5,
  GC_STATS: 6,
  EVENT_COLLECTION: 7,
  HANDSHAKE: 8,
  CPU_SAMPLE: 9,
};

const Field = {
  EVENT_TYPE: 0,
  TIMESTAMP: 1,
  PAYLOAD: 2,
  OBJECT_ID: 3,
  CLASS_NAME: 4,
  REFERENCES: 5,
  FILE: 6,
  LINE: 7,
  SIZE: 8,
  MESSAGE_COUNTER: 9,
  CORRELATION_ID: 10,
  COMPLETE_MESSAGE_COUNT: 11,
  METHOD_NAME: 12,
  LABEL: 13,
  THREAD_ID: 15,
  ATTRIBUTES: 16, // from here on sent by tornado_rbkit's profiler only
  KEYS: 17,
  RESIDENT: 18,
  THREAD_NAME: 19,
  TASK_NAME: 20,
  THREAD_STATE: 21,
  DEFINITION_LINE: 22,
  TRACED: 23,
  SUSPENDED_TASKS: 24, // these are numbers of the Python package, too
  TASKS: 25,
  TASKS_READ: 26,
  MILLISECONDS: 27,
  TASK_NAMES: 28,
};

/** Replaces the list of names if each reference is held by its position. */
export const POSITIONS = "positions";

export const PROTOCOL_MAJOR = "2";

// A close reason with this prefix is final; after other reasons the client may reconnect.
export const NOT_AUTHORIZED = "not authorized";

/**
 * @typedef {{label: string, file: string, line: number, thread: string, definition?: number | null}} Frame
 * @typedef {object} Sample
 * @property {number} type
 * @property {number} time In ms.
 * @property {string} thread
 * @property {string | null} [name] Of the thread; this and the next two are null if not known.
 * @property {string | null} [task] The name of its asyncio task.
 * @property {string | null} [state] "running", "waiting", "lock" or "gc".
 * @property {Frame[]} frames Innermost first.
 * @property {TaskLook | null} [tasks] What asyncio's suspended tasks wait for; then it is no sample of a thread.
 *
 * @typedef {object} TaskLook
 * @property {number} tasks How many tasks the process has.
 * @property {number} read How many of them the groups are of.
 * @property {number} milliseconds Since the look before.
 * @property {{tasks: number, names: string[], awaits: string | null, frames: Frame[]}[]} groups Tasks that wait at the same
 *   place; `awaits` is null if they are ready to run.
 *
 * @typedef {{process_name: string, pid: string, pwd: string, rbkit_server_version: string,
 *   rbkit_protocol_version: string, clock_type: string, cpu_interval: number | null, cpu_engine: string | null,
 *   cpu_engine_reason: string | null, object_trace_enabled: boolean, cpu_profiling_enabled: boolean | null,
 *   allocation_tracing_enabled: boolean | null}} Facts Of a process, from its handshake.
 */

// Received messages are validated here and nowhere else. The models get known types only, so they cannot fail in the
// middle of an update.

// Characters of a name (class, file, function); longer names are cut.
const MAX_TEXT = 500;

// Most figures of the collector; Ruby and Python send a few dozen.
const MAX_FIGURES = 200;

const LATEST_TIME = 8.64e15; // ms, the latest time of a Date
const LAST_LINE = 2 ** 32 - 1;

/**
 * Read a published message. Return {time, counter, events, unreadable}: ms or null, a number or null, the readable
 * events, and the number of unreadable events. Throws Unreadable if the message is not an event_collection.
 */
export function readMessage(bytes) {
  const { time, counter, known, unreadable } = readUsual(bytes, readEvent) ?? readAny(bytes);
  const lost = known.reduce((sum, event) => sum + (event.unreadable ?? 0), unreadable);
  return { time: isTime(time) ? time : null, counter: isCount(counter) ? counter : null, events: known, unreadable: lost };
}

/**
 * Read an event_collection in any form that is MessagePack.
 *
 * @param {Uint8Array} bytes
 */
export function readAny(bytes) {
  const message = decode(bytes);
  if (!isMap(message) || message[Field.EVENT_TYPE] !== EventType.EVENT_COLLECTION) throw new Unreadable("it is not an event_collection");
  if (!Array.isArray(message[Field.PAYLOAD])) throw new Unreadable("its event_collection has no list of events");
  return { time: message[Field.TIMESTAMP], counter: message[Field.MESSAGE_COUNTER], ...readEach(message[Field.PAYLOAD], readEvent) };
}

/**
 * Read a reply. Return {text} or, for a handshake, {facts, time}, the time in ms or null. Throws Unreadable if it is neither a refusal nor a valid
 * reply to the command.
 *
 * @param {string} command
 * @param {Uint8Array} bytes
 * @returns {{text?: string, facts?: Facts, time?: number | null}}
 */
export function readReply(command, bytes) {
  if (command !== "handshake" || startsWith(bytes, "error:")) return { text: cut(new TextDecoder().decode(bytes)) };
  const message = decode(bytes);
  if (!isMap(message) || message[Field.EVENT_TYPE] !== EventType.HANDSHAKE || !isMap(message[Field.PAYLOAD])) {
    throw new Unreadable("it is not a handshake");
  }
  const facts = message[Field.PAYLOAD];
  const time = message[Field.TIMESTAMP];
  return {
    time: isTime(time) ? time : null,
    facts: {
      process_name: text(facts.process_name, "(unknown)") ?? "(unknown)",
      pid: text(facts.pid, "(unknown)") ?? "(unknown)",
      pwd: text(facts.pwd, "(unknown)") ?? "(unknown)",
      rbkit_server_version: text(facts.rbkit_server_version, "(unknown)") ?? "(unknown)",
      rbkit_protocol_version: text(facts.rbkit_protocol_version, "(unknown)") ?? "(unknown)",
      clock_type: text(facts.clock_type, "(unknown)") ?? "(unknown)",
      cpu_interval: typeof facts.cpu_interval === "number" && facts.cpu_interval > 0 && facts.cpu_interval < Infinity ? facts.cpu_interval : null, // s
      cpu_engine: text(facts.cpu_engine) ?? null, // what samples; null before the first start, and of Ruby
      cpu_engine_reason: text(facts.cpu_engine_reason) ?? null, // why it is not the external one
      object_trace_enabled: Boolean(facts.object_trace_enabled),
      // null: the profiler cannot
      cpu_profiling_enabled: "cpu_profiling_enabled" in facts ? Boolean(facts.cpu_profiling_enabled) : null,
      allocation_tracing_enabled: "allocation_tracing_enabled" in facts ? Boolean(facts.allocation_tracing_enabled) : null,
    },
  };
}

/**
 * Return [name, value] if a message on the reply channel is a notice, else null.
 *
 * @param {Uint8Array} bytes
 * @returns {[string, string] | null}
 */
export function readNotice(bytes) {
  if (bytes.length > MAX_NOTICE) return null;
  const match = NOTICE.exec(new TextDecoder().decode(bytes));
  return match && [match[1] ?? match[3], match[2] ?? match[4]];
}

const MAX_NOTICE = 40; // bytes
const NOTICE = /^(?:(client_count|dropped):(\d{1,15})|(server):(disconnected|connected|restarted))$/;

/** Return the values that a function can read, and the number of unreadable values. */
function readEach(values, read) {
  const known = [];
  let unreadable = 0;
  for (const value of values) {
    const one = read(value);
    if (one === null) unreadable++;
    else known.push(one);
  }
  return { known, unreadable };
}

/** Return an event in its known type, null if it has none. */
export function readEvent(event) {
  if (!isMap(event)) return null;
  const type = event[Field.EVENT_TYPE];
  const time = event[Field.TIMESTAMP];
  const payload = event[Field.PAYLOAD];
  if (!isTime(time)) return null;
  switch (type) {
    case EventType.GC_START:
    case EventType.GC_END_M:
    case EventType.GC_END_S:
      return { type, time };
    case EventType.OBJ_CREATED: {
      if (!isMap(payload)) return null;
      const id = payload[Field.OBJECT_ID];
      const name = text(payload[Field.CLASS_NAME], "(unknown)");
      return isId(id) && name !== null ? { type, time, id, name } : null;
    }
    case EventType.OBJ_DESTROYED: {
      if (!isMap(payload)) return null;
      const id = payload[Field.OBJECT_ID];
      return isId(id) ? { type, time, id } : null;
    }
    case EventType.GC_STATS:
      return isMap(payload) ? { type, time, figures: readFigures(payload) } : null;
    case EventType.CPU_SAMPLE:
      if (event[Field.SUSPENDED_TASKS] !== undefined) return readTasks(type, time, event[Field.SUSPENDED_TASKS]);
      return Array.isArray(payload) ? readSample(type, time, payload) : null;
    case EventType.OBJECT_SPACE_DUMP:
      return Array.isArray(payload) ? readDump(type, time, event) : null;
    default:
      return null;
  }
}

/** Return figures by name: finite numbers, texts, or null for any other value. */
function readFigures(payload) {
  const all = Object.entries(payload);
  const figures = new Map(all.slice(0, MAX_FIGURES).map(([name, value]) => [cut(name), readFigure(value)]));
  if (all.length > MAX_FIGURES) figures.set("(figures left out)", all.length - MAX_FIGURES);
  return figures;
}

function readFigure(value) {
  if (typeof value === "number") return Number.isFinite(value) ? value : null;
  return text(value, null);
}


/** Return a sample with the innermost frame first; what is odd in what our profiler adds is left out. */
function readSample(type, time, payload) {
  const { known: frames, unreadable } = readEach(payload, readFrame);
  if (unreadable) return null;
  const told = (field) => (frames.length && payload[0][field] !== "" ? text(payload[0][field], null) : null);
  const state = told(Field.THREAD_STATE);
  return { type, time, thread: frames.length ? frames[0].thread : "", name: told(Field.THREAD_NAME), task: told(Field.TASK_NAME), state: STATES.has(state ?? "") ? state : null, frames };
}

/** Return a look at suspended tasks, null if a part of it is unreadable. */
function readTasks(type, time, look) {
  if (!isMap(look) || !Array.isArray(look[Field.PAYLOAD])) return null;
  const { [Field.TASKS]: tasks, [Field.TASKS_READ]: read, [Field.MILLISECONDS]: milliseconds } = look;
  const { known: groups, unreadable } = readEach(look[Field.PAYLOAD], readGroup);
  if (unreadable || !isCount(tasks) || !isCount(read) || !isTime(milliseconds)) return null;
  return { type, time, thread: "", frames: [], tasks: { tasks, read, milliseconds, groups } };
}

function readGroup(group) {
  if (!isMap(group) || !Array.isArray(group[Field.PAYLOAD]) || !Array.isArray(group[Field.TASK_NAMES])) return null;
  const { known: frames, unreadable } = readEach(group[Field.PAYLOAD], readFrame);
  const { known: names, unreadable: odd } = readEach(group[Field.TASK_NAMES], (name) => text(name, "(unknown)"));
  const awaits = group[Field.CLASS_NAME] ?? null;
  const isKnown = !unreadable && !odd && isCount(group[Field.TASKS]) && (awaits === null || typeof awaits === "string");
  return isKnown ? { tasks: group[Field.TASKS], names, awaits: awaits && cut(awaits), frames } : null;
}

function readFrame(frame) {
  if (!isMap(frame)) return null;
  const label = text(frame[Field.LABEL] ?? frame[Field.METHOD_NAME], "(unknown)");
  const file = text(frame[Field.FILE], "");
  const line = readLine(frame[Field.LINE]);
  const thread = text(frame[Field.THREAD_ID], "(unknown)");
  const definition = readLine(frame[Field.DEFINITION_LINE]) || null;
  return label === null || file === null || line === null || thread === null ? null : { label, file, line, thread, definition };
}

/** Return a part of a snapshot, or a whole one of rbkit's tag v0.1.10; an unreadable object does not affect the others. */
function readDump(type, time, event) {
  const { known: objects, unreadable } = readEach(event[Field.PAYLOAD], readObject);
  const isWhole = event[Field.CORRELATION_ID] === undefined && event[Field.COMPLETE_MESSAGE_COUNT] === undefined;
  const correlation = text(event[Field.CORRELATION_ID], "(unknown)");
  const expected = isWhole ? objects.length + unreadable : event[Field.COMPLETE_MESSAGE_COUNT];
  if (correlation === null || !isCount(expected)) return null;
  const [resident, traced] = [Field.RESIDENT, Field.TRACED].map((field) => (isCount(event[field]) ? event[field] : null));
  return { type, time, correlation, expected, objects, unreadable, resident, traced };
}

function readObject(object) {
  if (!isMap(object)) return null;
  const id = object[Field.OBJECT_ID];
  const name = text(object[Field.CLASS_NAME], "(unknown)");
  const references = object[Field.REFERENCES] ?? [];
  const file = text(object[Field.FILE], "");
  const line = readLine(object[Field.LINE]);
  const size = object[Field.SIZE] ?? 0;
  const isKnown = isId(id) && name !== null && Array.isArray(references) && references.every(isId) && file !== null && line !== null && isCount(size);
  return isKnown ? { id, name, references, file, line, size, names: readNames(object), label: text(object[Field.LABEL], "") ?? "" } : null;
}

/** Return the names of references: ".attribute", "['key']", "[3]", "" if not known; POSITIONS; or null. */
function readNames(object) {
  const attributes = object[Field.ATTRIBUTES];
  const keys = object[Field.KEYS];
  if (keys === 0) return POSITIONS;
  if (Array.isArray(keys)) return keys.map((key) => (typeof key === "string" ? `['${cut(key)}']` : Number.isInteger(key) ? `[${key}]` : ""));
  return Array.isArray(attributes) ? attributes.map((name) => (typeof name === "string" ? `.${cut(name)}` : "")) : null;
}

/** Return a line number, 0 if there is none, null if the value is invalid. */
function readLine(value) {
  if (value === null || value === undefined) return 0;
  return Number.isInteger(value) && value <= LAST_LINE ? Math.max(0, value) : null;
}

function isTime(value) {
  return typeof value === "number" && value >= 0 && value <= LATEST_TIME;
}

function isId(value) {
  return Number.isInteger(value);
}

function isCount(value) {
  return Number.isSafeInteger(value) && value >= 0;
}

/** Return a text: `without` for nil, numbers and booleans as text, null for any other value. */
function text(value, without) {
  if (typeof value === "string") return cut(value);
  if (value === null || value === undefined) return without;
  return typeof value === "number" || typeof value === "boolean" ? String(value) : null;
}

/** Return a text, cut if it is too long; a cut text is copied, because a slice keeps the whole text alive. */
function cut(value) {
  if (value.length <= MAX_TEXT) return value;
  return new TextDecoder().decode(new TextEncoder().encode(`${value.slice(0, MAX_TEXT)}…`));
}

function startsWith(bytes, wanted) {
  for (let i = 0; i < wanted.length; i++) if (bytes[i] !== wanted.charCodeAt(i)) return false;
  return true;
}
