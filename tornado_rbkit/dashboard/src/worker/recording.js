// A session as a file, in the format of `tornado-rbkit record`: MessagePack arrays [seconds, channel, command, bytes].

import { Incomplete, Reader, Unreadable } from "../connection/msgpack.js";

export const REPLY = 0;
export const DATA = 1;

const MAX_COMMAND = 256; // characters; no bridge accepts a longer command
const BLOB_BYTES = 1 << 20;
export const KEPT_BYTES = 256 << 20; // of recorded messages; beyond that the oldest are dropped

export class Recording {
  bytes = 0;
  dropped = 0; // number of messages that were dropped
  #blobs = []; // {blob, messages}; the browser may keep blobs on disk
  #open = [];
  #openMessages = 0;
  #openBytes = 0;
  /** @type {Uint8Array<ArrayBuffer>[] | null} */
  #handshake = null; // the last one; a file whose first messages were dropped needs it
  #started = performance.now();
  /** Called with each record. @type {((record: Uint8Array<ArrayBuffer>[]) => void) | undefined} */
  onrecord;

  /** Seconds since the first message, also of a session that is continued. */
  get seconds() {
    return (performance.now() - this.#started) / 1000;
  }

  /** Record one message; return the parts of its record, which are not copied. Later messages continue the time of a message that was recorded before. */
  add(channel, command, payload, seconds = undefined) {
    if (seconds !== undefined) this.#started = performance.now() - seconds * 1000;
    const record = [headOf(seconds ?? this.seconds, channel, command, payload), payload];
    const size = record[0].length + payload.length;
    this.onrecord?.(record);
    if (channel === REPLY && command === "handshake") this.#handshake = record;
    this.#open.push(...record);
    this.#openMessages++;
    this.#openBytes += size;
    this.bytes += size;
    if (this.#openBytes >= BLOB_BYTES) this.#close();
    return record;
  }

  /** Return the recorded messages as a file. */
  toBlob() {
    this.#close();
    const lost = this.dropped > 0 && this.#handshake !== null ? this.#handshake : [];
    return new Blob([...lost, ...this.#blobs.map(({ blob }) => blob)]);
  }

  #close() {
    if (!this.#open.length) return;
    this.#blobs.push({ blob: new Blob(this.#open), messages: this.#openMessages });
    this.#open = [];
    this.#openMessages = 0;
    this.#openBytes = 0;
    while (this.bytes > KEPT_BYTES && this.#blobs.length > 1) {
      const { blob, messages } = this.#blobs.shift();
      this.bytes -= blob.size;
      this.dropped += messages;
    }
  }
}

/** Return the bytes before the payload in a record: an array of a double, a small integer, a text or nil, and bytes. */
function headOf(seconds, channel, command, payload) {
  const name = command === null ? null : new TextEncoder().encode(command);
  const named = name === null ? 1 : 3 + name.length;
  const head = new Uint8Array(16 + named);
  const view = new DataView(head.buffer);
  head[0] = 0x94;
  head[1] = 0xcb;
  view.setFloat64(2, seconds);
  head[10] = channel;
  head[11] = name === null ? 0xc0 : 0xda;
  if (name !== null) {
    view.setUint16(12, name.length);
    head.set(name, 14);
  }
  head[11 + named] = 0xc6;
  view.setUint32(12 + named, payload.length);
  return head;
}

/** Yield the records [seconds, channel, command, bytes] of a file; throws an Error that says why it cannot be read. */
export async function* read(file) {
  if (!file.size) throw new Error(`${file.name} is empty`);
  let count = 0;
  try {
    for await (const record of values(file)) {
      if (!isRecord(record)) throw new Unreadable("it contains something else");
      count++;
      yield record;
    }
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    const what = count ? `${file.name} is damaged after ${count} messages` : `${file.name} is not a recording of rbkit`;
    const why = error instanceof Incomplete ? "it ends in the middle of one" : error.message;
    throw new Error(`${what}: ${why}`, { cause: error });
  }
}

/** Yield the values in a file, reading it in parts that are large enough for the next value. */
async function* values(file) {
  let wanted = BLOB_BYTES;
  for (let from = 0; from < file.size; ) {
    const bytes = new Uint8Array(await file.slice(from, from + wanted).arrayBuffer());
    let end = 0; // end of the last complete value
    try {
      while (end < bytes.length) {
        const reader = new Reader(bytes, end);
        const value = reader.value();
        end = reader.at;
        yield value;
      }
    } catch (error) {
      if (!(error instanceof Incomplete) || from + bytes.length >= file.size) throw error;
      wanted = end ? BLOB_BYTES : Math.max(2 * bytes.length, error.size);
    }
    from += end;
  }
}

function isRecord(value) {
  if (!Array.isArray(value) || value.length !== 4) return false;
  const [seconds, channel, command, payload] = value;
  const isNamed = command === null || (typeof command === "string" && command.length <= MAX_COMMAND);
  return Number.isFinite(seconds) && (channel === REPLY || channel === DATA) && isNamed && payload instanceof Uint8Array;
}
