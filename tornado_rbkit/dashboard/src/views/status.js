// The state of the connection, the facts about the process, and what was received of it.

import { h, menu, setAttribute, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { PROTOCOL_MAJOR } from "../connection/protocol.js";

/**
 * @typedef {import("./rpc.js").Facts} Facts
 * @typedef {import("./rpc.js").Header} Header
 * @typedef {import("./rpc.js").ProcessSummary} ProcessSummary
 */

/** What each state of the connection is called. */
export const STATES = {
  connecting: "connecting…",
  live: "live",
  waiting: "waiting for the profiler",
  lost: "connection lost",
  unopened: "no WebSocket",
  refused: "refused",
  gone: "the profiler is gone",
  closed: "closed",
  file: "from a file",
  absent: "no profiler yet",
};

export class Status {
  name = h("span", { class: "process" });
  banner;
  honesty = h("span", { class: "hint" });
  menu;
  #state = h("span", { class: "state", role: "status" });
  #reason = h("span", { class: "hint" });
  #facts = h("dl", { class: "facts", "aria-label": "The profiled process" });
  #retry;
  #live;

  /**
   * @param {object} options
   * @param {() => void} options.retry Connects at once.
   * @param {() => void} options.goLive Goes back from a file to the live profiler.
   */
  constructor({ retry, goLive }) {
    this.#retry = h("button", { type: "button", hidden: true, onclick: retry }, "Try now");
    this.#live = h("button", { type: "button", hidden: true, onclick: goLive }, "Back to the live profiler");
    this.banner = h("div", { class: "banner", hidden: true }, this.#reason, this.#retry, this.#live);
    this.menu = menu(this.#state, "", this.#facts);
  }

  /** @param {Header} header */
  draw(header) {
    this.#drawState(header);
    this.#drawFacts(header);
    this.#drawHonesty(header);
  }

  /** @param {Header} header */
  #drawState({ state, reason, retryAt, source }) {
    setText(this.#state, STATES[state]);
    setAttribute(this.#state, "data-state", state);
    const wait = retryAt === null ? "" : ` Trying again in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))} s.`;
    const { file = "", bytes = 0, size = 0, damage = null } = source ?? {};
    const reading = damage ?? (bytes < size ? `${file}, read ${format.percent(bytes, size)}` : file);
    const { howToStart } = document.documentElement.dataset;
    const absent = `${howToStart} It is shown here at once.`;
    const gone = `Its process ended, or its profiler was stopped. ${howToStart} This page follows it again when it is back.`;
    setText(this.#reason, state === "absent" ? absent : state === "gone" ? gone : state === "file" ? reading : [reason, reading].filter(Boolean).join(" ") + wait);
    this.#retry.hidden = retryAt === null && !["refused", "gone"].includes(state);
    this.#live.hidden = state !== "file";
    this.banner.hidden = !this.#reason.textContent && this.#retry.hidden && this.#live.hidden;
  }

  /** @param {Header} header */
  #drawFacts({ facts, clients }) {
    const recorded = facts && [facts.object_trace_enabled ? "memory" : "", facts.cpu_profiling_enabled ? "CPU" : ""].filter(Boolean).join(" and ");
    const shown = facts
      ? [
          ["process", facts.process_name],
          ["pid", facts.pid],
          ["directory", facts.pwd],
          ["rbkit", `${facts.rbkit_server_version}, protocol ${protocol(facts)}`],
          ["clock", facts.clock_type],
          ["recording", recorded || "nothing"],
          ...(facts.cpu_engine ? [["sampler", [facts.cpu_engine, facts.cpu_engine_reason].filter(Boolean).join(": ")]] : []),
          ...((clients ?? 1) > 1 ? [["viewers", clients]] : []),
        ]
      : [];
    shown.forEach(([name, value], i) => {
      const item = this.#facts.children[i] ?? this.#facts.appendChild(h("div", {}, h("dt"), h("dd")));
      setText(item.firstChild, name);
      setText(item.lastChild, String(value));
    });
    while (this.#facts.children.length > shown.length) this.#facts.lastChild.remove();
    setText(this.name, facts ? `${format.shortName(facts.process_name)}, pid ${facts.pid}` : "");
    setText(document.querySelector("title"), facts ? `${facts.process_name}: rbkit` : "rbkit");
  }

  /** @param {Header} header */
  #drawHonesty({ messages, bytes, missing, dropped, unreadable, recorded, notKept, leftOut }) {
    const parts = [`${format.count(messages)} messages, ${format.bytes(bytes)} received`];
    if (missing) parts.push(`${format.count(missing)} missing`);
    if (dropped) parts.push(`${format.count(dropped)} of them reported by the server: this page was too slow, or they were lost before it`);
    if (unreadable) parts.push(`${format.count(unreadable)} not readable`);
    if (notKept) parts.push(`of which the last ${format.bytes(recorded)} can be saved`);
    if (leftOut) parts.push(`${format.count(leftOut)} notes left out`);
    setText(this.honesty, parts.join("; "));
  }
}

/** The choice of the process in view, where there was a restart. */
export class Processes {
  element;
  /** @type {number | null} */
  #chosen = null; // number, null for the newest
  /** @type {ProcessSummary[]} */
  #known = [];
  #drawn = "";

  /** @param {{onchange: () => void}} options Called when the user chooses a process. */
  constructor({ onchange }) {
    const choose = () => {
      const number = Number(this.element.value);
      this.#chosen = number === newest(this.#known).number ? null : number;
      onchange();
    };
    this.element = h("select", { "aria-label": "Process", hidden: true, onchange: choose });
  }

  /** The number of the process in view. */
  get number() {
    return this.#chosen ?? newest(this.#known).number;
  }

  /** Show the newest process. */
  forget() {
    this.#chosen = null;
  }

  /** @param {ProcessSummary[]} processes */
  draw(processes) {
    this.#known = processes;
    this.element.hidden = processes.length < 2;
    const last = newest(processes).number;
    if (!processes.some(({ number }) => number === this.#chosen)) this.#chosen = null;
    const drawn = JSON.stringify(processes.map(({ number, facts, since }) => [number, facts?.pid, since]));
    if (drawn !== this.#drawn) {
      this.#drawn = drawn;
      this.element.replaceChildren(
        ...processes.map(({ number, facts, since }) => {
          const name = facts ? `pid ${facts.pid}` : format.clock(since);
          return h("option", { value: number }, number === last ? "newest process" : `earlier process, ${name}`);
        }),
      );
    }
    this.element.value = String(this.number);
  }
}

/** @param {ProcessSummary[]} processes */
function newest(processes) {
  return processes[processes.length - 1];
}

/** @param {Facts} facts */
function protocol({ rbkit_protocol_version: version }) {
  return version === "(unknown)" || version.split(".")[0] === PROTOCOL_MAJOR ? version : `${version}, of which this page supports ${PROTOCOL_MAJOR}`;
}
