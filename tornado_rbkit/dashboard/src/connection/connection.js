// One WebSocket to the bridge, reopened when it is lost. Replies arrive in the order of the commands.

import { NOT_AUTHORIZED, readNotice } from "./protocol.js";

const FIRST_WAIT = 0.5; // s
const LONGEST_WAIT = 15;

const POLICY = 1008;
const TRY_AGAIN = 1013;

// Other clients' commands change what is recorded; only a handshake reports it.
const HANDSHAKE_TICKS = 5;

// Scripts do not see the server's pings, and a browser takes minutes to notice a dead peer.
const OPENING_TICKS = 20;
const SILENCE_TICKS = 15; // with a command pending, before asking the server whether it is busy
const DOUBT_TICKS = 5; // between two such requests
const LONGEST_SILENCE_TICKS = 330; // if its status does not say: a snapshot may take 300 s, and later commands wait
const STATUS_MS = 10_000;

const NOT_OPENED =
  "The server answers, but its WebSocket does not open. Either a proxy does not pass the Upgrade " +
  "header on; or this page's origin is refused: add it to the setting allowed_origins, or have the proxy keep the Host header.";

/**
 * @typedef {{command: string, resolve: (text: string | null) => void, reject: (error: unknown) => void}} Pending
 *
 * @typedef {object} Receiver What a connection calls.
 * @property {(bytes: Uint8Array) => void} publish
 * @property {(command: string, bytes: Uint8Array) => string | null} reply Returns the reply's text, null for a handshake.
 * @property {(name: string, value: string, bytes: Uint8Array) => void} notice
 * @property {(what: string) => void} stray
 * @property {() => void} interrupted
 */

export class Connection {
  state = "connecting"; // "live", "waiting" for the profiler, "lost", "unopened", "refused", "gone", "closed"
  reason = "";
  /** @type {number | null} */
  retryAt = null; // ms since the epoch
  /** @type {Pending[]} */
  pending = []; // oldest first
  #wait = FIRST_WAIT;
  /** @type {number | undefined} */
  #timer = undefined;
  /** @type {WebSocket | null} */
  #socket = null; // events and status responses of any other socket are ignored
  #ticks = 0;
  #silent = 0; // ticks since the last message, or since the socket was created
  #asking = false; // true while a status request is under way

  /**
   * @param {string} url
   * @param {Receiver} on
   * @param {boolean} named Whether an unknown path means that the profiler is "gone" until `open` is called.
   */
  constructor(url, on, named = false) {
    this.url = url;
    this.named = named;
    this.on = on;
    this.open();
  }

  /** Open the WebSocket now. */
  open() {
    this.#drop();
    this.#become("connecting");
    const socket = new WebSocket(this.url, "rbkit");
    this.#socket = socket;
    this.#silent = 0;
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      if (socket !== this.#socket) return;
      opened = true;
      this.#silent = 0;
      this.#greet();
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket) return;
      this.#silent = 0;
      this.#receive(data);
    };
    socket.onclose = ({ code, reason }) => {
      if (socket === this.#socket) this.#closed(code, reason, opened);
    };
  }

  /**
   * Send a command; resolves with the reply's text, rejects if the connection is lost first.
   *
   * @param {string} command
   * @returns {Promise<string | null>}
   */
  request(command) {
    return new Promise((resolve, reject) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) {
        reject(new Error("not connected"));
        return;
      }
      this.#socket.send(command);
      this.pending.push({ command, resolve, reject });
    });
  }

  /** Close the connection permanently. */
  close() {
    this.#drop();
    this.#become("closed");
  }

  /** Check the connection; to be called every second. */
  tick() {
    this.#ticks++;
    this.#silent++;
    const isOpen = this.#socket?.readyState === WebSocket.OPEN;
    if (isOpen && !this.pending.length && this.#ticks % HANDSHAKE_TICKS === 0) this.#greet();
    if (isOpen && this.pending.length && this.#silent >= SILENCE_TICKS && this.#silent % DOUBT_TICKS === 0) this.#doubt();
    if (this.#socket?.readyState === WebSocket.CONNECTING && this.#silent >= OPENING_TICKS) {
      this.#lose("lost", "the server does not answer");
    }
  }

  #receive(data) {
    const message = typeof data === "string" ? new Uint8Array() : new Uint8Array(data);
    const channel = message[0];
    const payload = message.subarray(1);
    if (channel === 0x31) this.on.publish(payload);
    else if (channel === 0x30) this.#receiveReply(payload);
    else this.on.stray("it is on no channel of the bridge");
  }

  #receiveReply(payload) {
    const notice = readNotice(payload);
    if (notice) {
      if (notice[0] === "server") this.#become(notice[1] === "disconnected" ? "waiting" : "live");
      if (notice[0] === "server" && notice[1] !== "disconnected") this.#greet();
      this.on.notice(...notice, payload);
      return;
    }
    const asked = this.pending.shift();
    if (asked === undefined) {
      this.on.stray("it is a reply to no command");
      return;
    }
    try {
      const text = this.on.reply(asked.command, payload);
      if (asked.command === "handshake") {
        if (text === null) this.#wait = FIRST_WAIT;
        this.#become(text === null ? "live" : "waiting", text ?? "");
      }
      asked.resolve(text);
    } catch (error) {
      asked.reject(error);
      throw error;
    }
  }

  /** Send a handshake: the reply makes the state live. A lost connection is ignored here, since the state shows it. */
  #greet() {
    this.request("handshake").catch(() => {});
  }

  /** Ask the server whether it is busy; if it is not, the late reply means that the connection is dead. */
  async #doubt() {
    if (this.#asking) return;
    const socket = this.#socket;
    this.#asking = true;
    const status = await this.#status();
    this.#asking = false;
    if (socket !== this.#socket || this.#silent < SILENCE_TICKS) return;
    const busy = status === null ? false : isBusy(status);
    if (busy === null ? this.#silent >= LONGEST_SILENCE_TICKS : !busy) {
      this.#lose("lost", `nothing arrived for ${this.#silent} s, although a reply is due`);
    }
  }

  async #closed(code, reason, opened) {
    const socket = this.#socket;
    this.#fail();
    if (code === POLICY && reason.startsWith(NOT_AUTHORIZED)) {
      this.#refused(reason);
      return;
    }
    const status = opened ? null : await this.#status();
    if (socket !== this.#socket) return;
    if (status?.code === 401 || status?.code === 403) this.#refused(reasonOf(status));
    else if (status?.code === 404 && this.named) this.#rest("gone");
    else if (status && status.code >= 500) this.#lose("lost", `the server answers with ${status.code}`);
    else if (status) this.#lose("unopened", NOT_OPENED);
    else this.#lose(code === TRY_AGAIN ? "waiting" : "lost", reason);
  }

  /** Return the code and text of the server's status, null if it does not answer. A failed WebSocket has no status. */
  async #status() {
    const url = new URL(this.url);
    url.protocol = url.protocol.replace("ws", "http");
    url.pathname = url.pathname.replace(/ws$/, "status");
    try {
      const answer = await fetch(url, { signal: AbortSignal.timeout(STATUS_MS) });
      const isPlain = (answer.headers.get("Content-Type") ?? "").startsWith("text/plain");
      return { code: answer.status, isPlain, text: (await answer.text()).trim() };
    } catch {
      return null; // unreachable, which the state shows
    }
  }

  #refused(reason) {
    this.#rest("refused", reason);
  }

  /** Close the socket until `open` is called. */
  #rest(state, reason = "") {
    this.#drop();
    this.#become(state, reason);
  }

  /** Close the socket and open a new one after the backoff. */
  #lose(state, reason) {
    this.#drop();
    this.retryAt = Date.now() + this.#wait * 1000;
    this.#timer = setTimeout(() => this.open(), this.#wait * 1000);
    this.#wait = Math.min(LONGEST_WAIT, 2 * this.#wait * (0.8 + 0.4 * Math.random()));
    this.#become(state, reason);
  }

  #drop() {
    clearTimeout(this.#timer);
    this.retryAt = null;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
    this.#fail();
  }

  /** Reject the pending commands of a connection that has ended. */
  #fail() {
    const pending = this.pending;
    this.pending = [];
    for (const { reject } of pending) reject(new Error("the connection was lost before the reply"));
    this.on.interrupted();
  }

  #become(state, reason = "") {
    this.state = state;
    this.reason = reason;
  }
}

/** Return whether the bridge has commands to answer or bytes to send; null if its status does not say. */
function isBusy({ code, text }) {
  if (code !== 200) return null;
  const { commands_waiting: commands, clients } = parsed(text);
  if (typeof commands !== "number" || !Array.isArray(clients)) return null;
  return commands > 0 || clients.some(({ commands_waiting, bytes_waiting }) => commands_waiting > 0 || bytes_waiting > 0);
}

/** Return the text for people in an answer: a proxy's or Jupyter's page of HTML has none. */
function reasonOf({ code, isPlain, text }) {
  const message = isPlain ? text : parsed(text).message;
  return typeof message === "string" ? message : `the server answers with ${code}`;
}

/** Return the value of a JSON text, an empty object if it is null or not JSON, as a proxy's page is not. */
function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}
