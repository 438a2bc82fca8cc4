// A session as a file, in the format of `tornado-rbkit record`: MessagePack records [seconds, channel, command, bytes].

import { Encoder, decodeMultiStream } from "@msgpack/msgpack";

export const REPLY = 0;
export const DATA = 1;

const BLOB_BYTES = 1 << 20;
const KEPT_BYTES = 256 << 20; // of published messages; then the oldest are let go

const encoder = new Encoder();

export class Recording {
  bytes = 0;
  dropped = 0; // messages that are no longer kept
  #blobs = []; // {blob, messages}, which the browser may put on its disk
  #open = [];
  #openBytes = 0;
  #facts = new Map(); // the last reply to each command: a file that begins late needs its handshake
  #started = performance.now();

  /** Keep one message; return its record. */
  add(channel, command, payload, seconds = (performance.now() - this.#started) / 1000) {
    const record = encoder.encode([seconds, channel, command, payload]);
    if (channel === REPLY && command === "handshake") this.#facts.set(command, record);
    this.#open.push(record);
    this.#openBytes += record.length;
    this.bytes += record.length;
    if (this.#openBytes >= BLOB_BYTES) this.#close();
    return record;
  }

  /** Return what is kept, as a file. */
  toBlob() {
    this.#close();
    const lost = this.dropped > 0 ? [...this.#facts.values()] : [];
    return new Blob([...lost, ...this.#blobs.map(({ blob }) => blob)]);
  }

  #close() {
    if (!this.#open.length) return;
    this.#blobs.push({ blob: new Blob(this.#open), messages: this.#open.length });
    this.#open = [];
    this.#openBytes = 0;
    while (this.bytes > KEPT_BYTES && this.#blobs.length > 1) {
      const { blob, messages } = this.#blobs.shift();
      this.bytes -= blob.size;
      this.dropped += messages;
    }
  }
}

// What decodes as this comes behind a file that is whole, and is lost in the last record of one that was cut off:
// the decoder itself says nothing of half a record.
const END = null;
const ENCODED_END = Uint8Array.of(0xc0);

async function* withEnd(file) {
  yield* file.stream();
  yield ENCODED_END;
}

/** Yield [seconds, channel, command, bytes] of a file; throws an Error that says what is wrong with it. */
export async function* read(file) {
  let count = 0;
  let ended = false;
  try {
    for await (const record of decodeMultiStream(withEnd(file))) {
      if (record === END) {
        ended = true;
        break;
      }
      const [seconds, channel, command, payload] = Array.isArray(record) ? record : [];
      if (typeof seconds !== "number" || !(payload instanceof Uint8Array) || (channel !== REPLY && channel !== DATA)) {
        throw new Error("it holds something else");
      }
      count++;
      yield [seconds, channel, command, payload];
    }
    if (!ended) throw new Error("it ends in the middle of one");
  } catch (error) {
    const what = count ? `${file.name} is damaged after ${count} messages` : `${file.name} is not a recording of rbkit`;
    throw new Error(`${what}: ${error.message}`, { cause: error });
  }
  if (!count) throw new Error(`${file.name} is empty`);
}
