// rbkit 2.1 as it is on the wire: the numbers of tornado_rbkit/protocol.py.

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

export const Field = {
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
};

export const COMMANDS = [
  "start_memory_profile",
  "stop_memory_profile",
  "start_cpu_profiling",
  "stop_cpu_profiling",
  "use_wall_time",
  "use_cpu_time",
  "objectspace_snapshot",
  "trigger_gc",
  "handshake",
];

export const PROTOCOL_MAJOR = "2";

const NOTICES = new Set(["client_count", "dropped", "server"]);

/** Return the text of a reply or a notice; null of a reply that is MessagePack. */
export function textOf(bytes) {
  return bytes.every((byte) => byte >= 0x20 && byte < 0x7f) || startsWith(bytes, "error:")
    ? new TextDecoder().decode(bytes)
    : null;
}

/** Return [name, value] of a text that is a notice, else null. */
export function parseNotice(text) {
  const colon = text.indexOf(":");
  const name = text.slice(0, colon);
  return colon > 0 && NOTICES.has(name) ? [name, text.slice(colon + 1)] : null;
}

function startsWith(bytes, text) {
  for (let i = 0; i < text.length; i++) if (bytes[i] !== text.charCodeAt(i)) return false;
  return true;
}
