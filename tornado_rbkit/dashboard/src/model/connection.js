// One WebSocket to the bridge, opened again when it is lost. Replies come in the order of the commands.

import { parseNotice, textOf } from "./protocol.js";

const FIRST_WAIT = 0.5; // s
const LONGEST_WAIT = 15;

const POLICY = 1008;
const TRY_AGAIN = 1013;

export class Connection {
  state = "connecting"; // "live", "waiting" for the profiler, "lost", "refused", "closed"
  reason = "";
  retryAt = null; // ms since the epoch
  pending = []; // {command, resolve}, the oldest first
  #wait = FIRST_WAIT;
  #timer = null;
  #socket = null;

  /** `on` has publish(bytes), reply(command, bytes), notice(name, value, bytes), interrupted() and changed(). */
  constructor(url, on) {
    this.url = url;
    this.on = on;
    this.open();
  }

  /** Open now. */
  open() {
    clearTimeout(this.#timer);
    this.#socket?.close();
    this.#become("connecting");
    const socket = new WebSocket(this.url, "rbkit");
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.#greet();
    };
    socket.onmessage = ({ data }) => this.#receive(new Uint8Array(data));
    socket.onclose = ({ code, reason }) => {
      if (socket === this.#socket) this.#lost(code, reason, opened);
    };
    this.#socket = socket;
  }

  /** Send a command; the promise is of its reply's bytes, and fails when the connection is lost before. */
  request(command) {
    return new Promise((resolve, reject) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) {
        reject(new Error("not connected"));
        return;
      }
      this.#socket.send(command);
      this.pending.push({ command, resolve, reject });
      this.on.changed();
    });
  }

  /** Close it for good. */
  close() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
    this.#fail();
    this.#become("closed");
  }

  #receive(message) {
    const payload = message.subarray(1);
    if (message[0] === 0x31) {
      this.on.publish(payload);
      return;
    }
    const notice = parseNotice(textOf(payload) ?? "");
    if (notice) {
      if (notice[0] === "server") this.#become(notice[1] === "disconnected" ? "waiting" : "live");
      if (notice[0] === "server" && notice[1] !== "disconnected") this.#greet();
      this.on.notice(...notice, payload);
      return;
    }
    const asked = this.pending.shift();
    const text = this.on.reply(asked.command, payload);
    if (asked.command === "handshake") {
      if (text === null) this.#wait = FIRST_WAIT;
      this.#become(text === null ? "live" : "waiting", text ?? "");
    }
    asked.resolve(text);
    this.on.changed();
  }

  /** Ask who is there: live is what answers. That the connection was lost before is told as its state. */
  #greet() {
    this.request("handshake").catch(() => {});
  }

  async #lost(code, reason, opened) {
    this.#fail();
    this.on.interrupted();
    if (code === POLICY) {
      this.#become("refused", reason);
      return;
    }
    const refusal = opened ? null : await this.#refusal();
    if (refusal !== null) {
      this.#become("refused", refusal);
      return;
    }
    this.retryAt = Date.now() + this.#wait * 1000;
    this.#timer = setTimeout(() => this.open(), this.#wait * 1000);
    this.#wait = Math.min(LONGEST_WAIT, 2 * this.#wait * (0.8 + 0.4 * Math.random()));
    this.#become(code === TRY_AGAIN ? "waiting" : "lost", reason);
  }

  /** Return why the server refuses; a WebSocket does not say. Null if it does not, or cannot be asked. */
  async #refusal() {
    const url = new URL(this.url);
    url.protocol = url.protocol.replace("ws", "http");
    url.pathname = url.pathname.replace(/ws$/, "status");
    try {
      const answer = await fetch(url);
      return answer.status === 401 || answer.status === 403 ? (await answer.text()).trim() : null;
    } catch {
      return null; // it is away, which the state says
    }
  }

  #fail() {
    const pending = this.pending;
    this.pending = [];
    for (const { reject } of pending) reject(new Error("the connection was lost before the reply"));
  }

  #become(state, reason = "") {
    this.state = state;
    this.reason = reason;
    if (state !== "lost" && state !== "waiting") this.retryAt = null;
    this.on.changed();
  }
}
