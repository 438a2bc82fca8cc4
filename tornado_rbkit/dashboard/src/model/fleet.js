// The targets of one machine or many hosts: their state now, and the figures of their processes over the last minutes.
// Takes the server's document once a second; nothing in it makes a method here throw.

export const HISTORY_SECONDS = 120;
const MOST_POINTS = 2 * HISTORY_SECONDS;
const MOST_TARGETS = 2000;
const MOST_HOSTS = 1024;
const MOST_TEXT = 300;

// Agents send figures each two seconds; older ones are not shown as the present.
const LONGEST_SILENCE = 7; // s

/**
 * @typedef {{time: number, cpu: number | null, rss: number | null}} Point `time` in s of the page's clock, `cpu` in per
 *   cent of one core since the point before, `rss` in bytes.
 *
 * @typedef {object} Target
 * @property {string} name
 * @property {string} host "" for this machine.
 * @property {string} process
 * @property {number | null} pid
 * @property {string} state Of its host if that is not "here", else of the connection to the profiler.
 * @property {string} trouble Of the connection, "" if there is none or its host is not here.
 * @property {number} viewers
 * @property {string[]} recording
 * @property {number | null} rate Bytes per second sent to viewers.
 * @property {number | null} cpu
 * @property {number | null} rss
 * @property {Point[]} history
 *
 * @typedef {{name: string, state: string, seconds: number, targets: number}} Host
 * @typedef {{filter: string, sort: string, descending: boolean, limit: number}} Query
 * @typedef {{pid: number | null, bytes: number, now: number, cpuMs: number | null, at: number}} Sent
 */

export class Fleet {
  /** @type {Host[]} Those that are not here first. */
  hosts = [];
  /** @type {Target[]} */
  targets = [];
  leftOut = 0;
  /** @type {Map<string, {points: Point[], sent: Sent}>} */
  #before = new Map(); // by name

  /**
   * Take the server's document.
   *
   * @param {any} document
   * @param {number} time When it arrived, in s of the page's clock.
   */
  update(document, time) {
    this.hosts = list(document?.hosts, MOST_HOSTS).map(readHost).sort(byState);
    const states = new Map(this.hosts.map(({ name, state }) => [name, state]));
    const now = number(document?.now) ?? 0;
    const before = this.#before;
    this.#before = new Map();
    this.targets = [];
    for (const row of list(document?.targets, MOST_TARGETS)) {
      const name = text(row.name);
      if (name && !this.#before.has(name)) this.targets.push(this.#read(name, row, now, time, before.get(name), states));
    }
    this.leftOut = number(document?.left_out) ?? 0;
  }

  /**
   * Return the targets whose texts have all words of the filter, in order, as many as the limit; and how many match.
   *
   * @param {Query} query
   */
  rows({ filter, sort, descending, limit }) {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = this.targets.filter((target) => {
      const searched = searchable(target);
      return words.every((word) => searched.includes(word));
    });
    const key = Object.hasOwn(KEYS, sort) ? KEYS[sort] : KEYS.name;
    const direction = descending ? -1 : 1;
    const rows = matching.map((target) => ({ target, value: key(target) }));
    rows.sort((a, b) => compare(a.value, b.value, direction) || collator.compare(a.target.name, b.target.name));
    return { rows: rows.slice(0, limit).map(({ target }) => target), matching: matching.length };
  }

  /**
   * @param {string} name
   * @param {any} row
   * @param {number} now
   * @param {number} time
   * @param {{points: Point[], sent: Sent} | undefined} before
   * @param {Map<string, string>} states
   * @returns {Target}
   */
  #read(name, row, now, time, before, states) {
    const [pid, rss, cpuMs] = [number(row.pid), number(row.rss), number(row.cpu_ms)];
    const sent = { pid, bytes: number(row.bytes_sent) ?? 0, now, cpuMs, at: number(row.at) ?? 0 };
    const same = before?.sent.pid === pid ? before : undefined; // another process has its own history
    let history = (same?.points ?? []).filter((point) => point.time > time - HISTORY_SECONDS);
    if (rss === null && cpuMs === null) sent.at = same?.sent.at ?? -1;
    else if (sent.at !== same?.sent.at) history = [...history, { time, cpu: share(same?.sent, sent), rss }].slice(-MOST_POINTS);
    this.#before.set(name, { points: history, sent });
    const last = history.at(-1);
    const latest = last && time - last.time <= LONGEST_SILENCE ? last : null;
    const host = text(row.host);
    const hostState = states.get(host) ?? "here";
    return {
      name,
      host,
      process: text(row.process),
      pid,
      state: hostState === "here" ? text(row.state) : hostState,
      trouble: hostState === "here" ? text(row.trouble) : "",
      viewers: number(row.viewers) ?? 0,
      recording: Array.isArray(row.recording) ? row.recording.slice(0, 3).map(text).filter(Boolean) : [],
      rate: rate(before?.sent, sent),
      cpu: latest?.cpu ?? null,
      rss: latest?.rss ?? null,
      history,
    };
  }
}

const collator = new Intl.Collator("en", { numeric: true });
const HOST_STATES = ["gone", "frozen", "late", "here"];

/** @type {Record<string, (target: Target) => string | number | null>} What a column is sorted by. */
const KEYS = {
  name: ({ name }) => name,
  process: ({ process }) => process || null,
  state: ({ state, trouble }) => `${trouble ? "0" : "1"}${state}`,
  viewers: ({ viewers }) => viewers,
  cpu: ({ cpu }) => cpu,
  rss: ({ rss }) => rss,
  recording: ({ recording }) => recording.join() || null,
  rate: ({ rate }) => rate,
};

/**
 * Compare two values of a column; an unknown one comes last in both directions.
 *
 * @param {string | number | null} one
 * @param {string | number | null} other
 * @param {number} direction
 */
function compare(one, other, direction) {
  if (one === null || other === null) return Number(one === null) - Number(other === null);
  return direction * (typeof one === "number" && typeof other === "number" ? one - other : collator.compare(String(one), String(other)));
}

/** @param {Target} target */
function searchable({ name, process, pid, state, trouble, recording }) {
  return [name, process, pid, state, trouble, ...recording].join(" ").toLowerCase();
}

/**
 * Return the CPU time between two readings in per cent of one core; null if that is not known.
 *
 * @param {Sent | undefined} before
 * @param {Sent} now
 */
function share(before, now) {
  if (!before || before.cpuMs === null || now.cpuMs === null || now.cpuMs < before.cpuMs) return null;
  const seconds = now.at - before.at;
  return seconds > 0 && seconds <= LONGEST_SILENCE ? (now.cpuMs - before.cpuMs) / seconds / 10 : null;
}

/**
 * @param {Sent | undefined} before
 * @param {Sent} sent
 */
function rate(before, sent) {
  if (!before || sent.bytes < before.bytes || sent.now <= before.now) return null;
  return (sent.bytes - before.bytes) / (sent.now - before.now);
}

/**
 * @param {any} row
 * @returns {Host}
 */
function readHost(row) {
  const state = text(row.state);
  return { name: text(row.name), state: HOST_STATES.includes(state) ? state : "here", seconds: number(row.seconds) ?? 0, targets: number(row.targets) ?? 0 };
}

/**
 * @param {Host} one
 * @param {Host} other
 */
function byState(one, other) {
  return HOST_STATES.indexOf(one.state) - HOST_STATES.indexOf(other.state) || collator.compare(one.name, other.name);
}

/**
 * @param {any} value
 * @param {number} most
 * @returns {any[]}
 */
function list(value, most) {
  return Array.isArray(value) ? value.slice(0, most).filter((row) => row !== null && typeof row === "object") : [];
}

/** @param {unknown} value */
function text(value) {
  return typeof value === "string" ? value.slice(0, MOST_TEXT) : "";
}

/** @param {unknown} value */
function number(value) {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;
}
