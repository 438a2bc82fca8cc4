// Messages as rbkit sends them, and invalid ones.

/** A map whose keys are numbers. */
export const numbered = (fields) => new Map(Object.entries(fields).map(([key, value]) => [Number(key), value]));

/** Encode a value as MessagePack: a Map with its own keys, an object with texts. */
export function encode(value) {
  const out = [];
  write(out, value);
  return Uint8Array.from(out);
}

export const collection = (counter, events, time = 1.8e12) => encode(numbered({ 0: 7, 1: time, 9: counter, 2: events }));

export const handshake = (facts = {}, time = 1.8e12) =>
  encode(numbered({ 0: 8, 1: time, 2: { process_name: "shop", pid: 1, pwd: "/srv", rbkit_server_version: "0.1", rbkit_protocol_version: "2.1", clock_type: "wall", object_trace_enabled: 1, cpu_profiling_enabled: 0, ...facts } }));

export const created = (id, name, time = 1.8e12) => numbered({ 0: 0, 1: time, 2: numbered({ 3: id, 4: name }) });

export const destroyed = (id, time = 1.8e12) => numbered({ 0: 1, 1: time, 2: numbered({ 3: id }) });

export const frame = (label, thread = 1, line = 3) => numbered({ 12: label, 13: label, 6: "/srv/shop.rb", 7: line, 14: 0, 15: thread });

/** A sample, its stack given from the inside out. */
export const sample = (frames, time = 1.8e12) => numbered({ 0: 9, 1: time, 2: frames });

export const heapObject = (id, name, references = []) => numbered({ 3: id, 4: name, 5: references, 6: null, 7: null, 8: 40 });

export const dump = (correlation, expected, objects, time = 1.8e12) => numbered({ 0: 5, 1: time, 10: correlation, 11: expected, 2: objects });

/** A file of records [seconds, channel, command, bytes]. */
export const file = (name, ...parts) => Object.assign(new Blob(parts), { name });

/** Return a source of chance that is the same each time. */
export function chance(seed) {
  let state = seed;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  return Object.assign(next, { of: (list) => list[Math.floor(next() * list.length)] });
}

function write(out, value) {
  if (value === null || value === undefined) out.push(0xc0);
  else if (typeof value === "boolean") out.push(value ? 0xc3 : 0xc2);
  else if (typeof value === "number") writeNumber(out, value);
  else if (typeof value === "string") writeBytes(out, 0xdb, Buffer.from(value));
  else if (value instanceof Uint8Array) writeBytes(out, 0xc6, value);
  else if (Array.isArray(value)) writeAll(out, 0xdd, value.length, value);
  else if (value instanceof Map) writeAll(out, 0xdf, value.size, [...value].flat(1));
  else writeAll(out, 0xdf, Object.keys(value).length, Object.entries(value).flat(1));
}

function writeAll(out, head, count, values) {
  out.push(head, ...big(count, 4));
  for (const value of values) write(out, value);
}

function writeBytes(out, head, bytes) {
  out.push(head, ...big(bytes.length, 4));
  for (const byte of bytes) out.push(byte);
}

function writeNumber(out, value) {
  if (Number.isInteger(value) && value >= 0 && value < 128) {
    out.push(value);
    return;
  }
  const isUnsigned = Number.isSafeInteger(value) && value >= 0;
  const view = new DataView(new ArrayBuffer(8));
  if (isUnsigned) view.setBigUint64(0, BigInt(value));
  else view.setFloat64(0, value);
  out.push(isUnsigned ? 0xcf : 0xcb, ...new Uint8Array(view.buffer));
}

function big(value, size) {
  return Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** (size - 1 - i)) % 256);
}
