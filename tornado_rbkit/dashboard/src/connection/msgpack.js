// A MessagePack decoder for untrusted input: the bytes received bound memory and depth, not the lengths they claim.

// rbkit's messages nest six levels: message, events, event, frames, frame, number.
const MAX_DEPTH = 64;

// An empty map takes one byte of a message and dozens in memory.
const MAX_VALUES = 2 ** 24;
const TOO_MANY = `it holds more than ${MAX_VALUES} values`;

// Short names repeat often; they are decoded once.
const CACHED_BYTES = 128;
const CACHED_TEXTS = 4096;

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** Thrown for bytes that cannot be read; the message says why. */
export class Unreadable extends Error {}

/** Thrown for bytes that end too early; at least `size` bytes are needed. */
export class Incomplete extends Unreadable {
  constructor(size) {
    super("it ends in the middle of a value");
    this.size = size;
  }
}

/** Return the single value in these bytes; throws Unreadable. */
export function decode(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value();
  reader.end();
  return value;
}

/** Return whether a value is a decoded map. */
export function isMap(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);
}

const cache = new Array(CACHED_TEXTS).fill(null); // {bytes, text}

/** Reads values one after another. 64-bit integers become doubles, extension types null, maps plain objects. */
export class Reader {
  at;
  #bytes;
  #view;
  #values = 0;

  constructor(bytes, at = 0) {
    this.at = at;
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  /** Return the next value; throws Unreadable. */
  value(depth = 0) {
    if (++this.#values > MAX_VALUES) throw new Unreadable(TOO_MANY);
    const byte = this.#bytes[this.#skip(1)];
    if (byte < 0x80) return byte;
    if (byte < 0x90) return this.#map(byte & 0x0f, depth);
    if (byte < 0xa0) return this.#array(byte & 0x0f, depth);
    if (byte < 0xc0) return this.#text(byte & 0x1f);
    if (byte >= 0xe0) return byte - 0x100;
    const view = this.#view;
    switch (byte) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
      case 0xc5:
      case 0xc6:
        return this.#binary(this.#length(byte - 0xc4));
      case 0xc7:
      case 0xc8:
      case 0xc9:
        return this.#extension(this.#length(byte - 0xc7));
      case 0xca:
        return view.getFloat32(this.#skip(4));
      case 0xcb:
        return view.getFloat64(this.#skip(8));
      case 0xcc:
      case 0xcd:
      case 0xce:
        return this.#length(byte - 0xcc);
      case 0xcf:
        return view.getUint32(this.#skip(4)) * 4294967296 + view.getUint32(this.#skip(4));
      case 0xd0:
        return view.getInt8(this.#skip(1));
      case 0xd1:
        return view.getInt16(this.#skip(2));
      case 0xd2:
        return view.getInt32(this.#skip(4));
      case 0xd3:
        return view.getInt32(this.#skip(4)) * 4294967296 + view.getUint32(this.#skip(4));
      case 0xd4:
      case 0xd5:
      case 0xd6:
      case 0xd7:
      case 0xd8:
        return this.#extension(2 ** (byte - 0xd4));
      case 0xd9:
      case 0xda:
      case 0xdb:
        return this.#text(this.#length(byte - 0xd9));
      case 0xdc:
      case 0xdd:
        return this.#array(this.#length(byte - 0xdb), depth);
      case 0xde:
      case 0xdf:
        return this.#map(this.#length(byte - 0xdd), depth);
      default:
        throw new Unreadable(`0x${byte.toString(16)} is not MessagePack`);
    }
  }

  /** Throw Unreadable unless this is the end of the bytes, or if there were too many values with those read elsewhere. */
  end(others = 0) {
    if (this.#values + others > MAX_VALUES) throw new Unreadable(TOO_MANY);
    if (this.at !== this.#bytes.length) throw new Unreadable(`${this.#bytes.length - this.at} bytes follow its end`);
  }

  /** Return the start of the next bytes and move past them. */
  #skip(size) {
    const at = this.at;
    if (at + size > this.#bytes.length) throw new Incomplete(at + size);
    this.at = at + size;
    return at;
  }

  /** Return an unsigned integer of 1, 2 or 4 bytes. */
  #length(power) {
    if (power === 0) return this.#bytes[this.#skip(1)];
    return power === 1 ? this.#view.getUint16(this.#skip(2)) : this.#view.getUint32(this.#skip(4));
  }

  // Containers grow as their values are read: a claimed length allocates nothing.

  #array(length, depth) {
    this.#enter(depth);
    const array = [];
    for (let i = 0; i < length; i++) array.push(this.value(depth + 1));
    return array;
  }

  #map(length, depth) {
    this.#enter(depth);
    const map = {};
    for (let i = 0; i < length; i++) {
      const key = this.value(depth + 1);
      map[typeof key === "number" ? key : keyText(key)] = this.value(depth + 1);
    }
    return map;
  }

  #enter(depth) {
    if (depth >= MAX_DEPTH) throw new Unreadable(`it is nested deeper than ${MAX_DEPTH} levels`);
  }

  #binary(length) {
    const at = this.#skip(length);
    return this.#bytes.subarray(at, at + length);
  }

  #extension(length) {
    this.#skip(length + 1);
    return null;
  }

  #text(length) {
    const at = this.#skip(length);
    return textAt(this.#bytes, at, length);
  }
}

/** Return the text of some bytes; short ones that were read before are not decoded again. */
export function textAt(bytes, at, length) {
  if (length > CACHED_BYTES) return utf8.decode(bytes.subarray(at, at + length));
  let hash = length;
  for (let i = at; i < at + length; i++) hash = (Math.imul(hash, 31) + bytes[i]) | 0;
  const slot = hash & (CACHED_TEXTS - 1);
  const known = cache[slot];
  if (known !== null && isAt(bytes, at, length, known.bytes)) return known.text;
  const own = bytes.slice(at, at + length);
  const text = utf8.decode(own);
  cache[slot] = { bytes: own, text };
  return text;
}

function isAt(bytes, at, length, wanted) {
  if (wanted.length !== length) return false;
  for (let i = 0; i < length; i++) if (bytes[at + i] !== wanted[i]) return false;
  return true;
}

/** Return a key that is safe as an object property. */
function keyText(key) {
  return typeof key === "string" && key !== "__proto__" ? key : `(${typeof key === "string" ? key : typeof key})`;
}
