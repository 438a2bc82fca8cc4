// @ts-check
// The page: the choice of profiler, its state, its commands, and the views.

import { query, tabName } from "./address.js";
import { fileButton, h, menu, save, setAttribute, setDisabled, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { PROTOCOL_MAJOR } from "../connection/protocol.js";
import { ask, onFailure } from "./rpc.js";
import { CpuView } from "./cpu/view.js";
import { addressOf, FLEET, FleetView } from "./fleet.js";
import { MemoryView } from "./memory.js";
import { ObjectsView } from "./objects.js";
import { OverviewView } from "./overview.js";
import { SnapshotsView } from "./snapshots.js";

/**
 * @typedef {import("./rpc.js").Facts} Facts
 * @typedef {import("./rpc.js").Header} Header
 * @typedef {import("./rpc.js").ProcessSummary} ProcessSummary
 *
 * @typedef {object} View What the page calls of a view.
 * @property {HTMLElement} element
 * @property {number} refreshSeconds
 * @property {(header: Header, process: number) => Promise<void>} update
 * @property {(() => void) | undefined} onchange
 * @property {() => void} [forget]
 * @property {Record<string, string>} [choices]
 * @property {(choices: URLSearchParams) => void} [restore]
 * @property {(state: unknown) => void} [back]
 *
 * @typedef {object} Command How a command's button looks.
 * @property {(facts: Facts | null) => string} label
 * @property {(facts: Facts | null) => string} command
 * @property {(facts: Facts | null) => boolean} [pressed]
 * @property {(facts: Facts | null) => boolean} [hidden] Whether the profiler does not know the command.
 * @property {string} title
 */

const HEADER_SECONDS = 0.25;
const TARGETS_SECONDS = 5;
const FAILURE_SECONDS = 15;
const SHOWN_FAILURES = 10;

const STATES = {
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

/** @type {Command} */
const MEMORY = {
  label: (facts) => (facts?.object_trace_enabled ? "Stop memory" : "Record memory"),
  command: (facts) => (facts?.object_trace_enabled ? "stop_memory_profile" : "start_memory_profile"),
  pressed: (facts) => Boolean(facts?.object_trace_enabled),
  title: "objects allocated and freed, and the garbage collector",
};
/** @type {Command} */
const CPU = {
  label: (facts) => (facts?.cpu_profiling_enabled ? "Stop CPU" : "Record CPU"),
  command: (facts) => (facts?.cpu_profiling_enabled ? "stop_cpu_profiling" : "start_cpu_profiling"),
  pressed: (facts) => Boolean(facts?.cpu_profiling_enabled),
  title: "sample the stacks of all threads",
};
/** @type {Command} */
const SNAPSHOT = { label: () => "Snapshot", command: () => "objectspace_snapshot", title: "all objects in the heap, and what they refer to" };
/** @type {Command[]} */
const CLOCKS = [
  { label: () => "Wall clock", command: () => "use_wall_time", pressed: (facts) => facts?.clock_type === "wall", title: "sample threads that wait, too" },
  { label: () => "CPU clock", command: () => "use_cpu_time", pressed: (facts) => facts?.clock_type === "cpu", title: "sample threads that compute" },
];
/** @type {Command} */
const TRACING = {
  label: (facts) => (facts?.allocation_tracing_enabled ? "Stop tracing" : "Trace allocations"),
  command: (facts) => (facts?.allocation_tracing_enabled ? "stop_allocation_tracing" : "start_allocation_tracing"),
  pressed: (facts) => Boolean(facts?.allocation_tracing_enabled),
  hidden: (facts) => typeof facts?.allocation_tracing_enabled !== "boolean",
  title: "tracemalloc: snapshots have the file and line where each object was created; creating objects takes 3 to 5 times as long meanwhile",
};
/** @type {Command[]} */
const MORE = [
  { label: () => "Collect garbage", command: () => "trigger_gc", title: "run the garbage collector" },
  { label: () => "Ask again", command: () => "handshake", title: "ask what is recorded" },
];

class Page {
  #allowed = new Set(/** @type {string} */ (document.documentElement.dataset.commands).split(" "));
  /** @type {[string, string, View][]} */
  #views;
  #tab = tabName();
  #snapshots;
  #fleet = new FleetView((name) => this.#visit(name));
  #overview;
  /** @type {View | null} */
  #view = null;
  /** @type {Map<string, HTMLButtonElement>} */
  #tabs = new Map();
  /** @type {Header | null} */
  #header = null;
  /** @type {number | null} */
  #process = null; // number, null for the newest
  /** @type {{name: string}[]} */
  #targets = [];
  #drawnProcesses = "";
  #target = new URLSearchParams(location.search).get("target");
  #told = [0, 0]; // the session, and the last log line shown
  /** @type {{spec: Command, button: HTMLButtonElement}[]} */
  #buttons = []; // {spec, button} of all commands
  #drawnAt = 0;
  #busy = false;

  /** @param {HTMLElement} root */
  constructor(root) {
    const takeSnapshot = () => this.#send("objectspace_snapshot", null);
    const recordMemory = () => this.#button({ ...MEMORY, label: () => "Record memory now" }, "main");
    const recordCpu = () => this.#button({ ...CPU, label: () => "Record CPU now" }, "main");
    this.#snapshots = new SnapshotsView({ takeSnapshot, trace: this.#button(TRACING) });
    this.#overview = new OverviewView({
      recordMemory: recordMemory(),
      recordCpu: recordCpu(),
      findGrowth: () => {
        this.#open("snapshots");
        this.#snapshots.growth.find();
      },
      open: (id) => this.#open(id),
    });
    this.#views = [
      ["overview", "Overview", this.#overview],
      ["memory", "Memory", new MemoryView({ record: recordMemory() })],
      ["objects", "Objects", new ObjectsView({ record: recordMemory() })],
      ["snapshots", "Snapshots", this.#snapshots],
      ["cpu", "CPU", new CpuView({ record: recordCpu(), clocks: CLOCKS.map((spec) => this.#button(spec)) })],
    ];
    this.state = h("span", { class: "state", role: "status" });
    this.reason = h("span", { class: "hint" });
    this.retry = h("button", { type: "button", hidden: true, onclick: () => ask("reconnect") }, "Try now");
    this.all = h("a", { class: "link", hidden: true, href: "", onclick: (/** @type {MouseEvent} */ event) => this.#leave(event) });
    this.target = h("span", { class: "target", hidden: true });
    this.name = h("span", { class: "process" });
    this.facts = h("dl", { class: "facts", "aria-label": "The profiled process" });
    this.processes = h("select", { "aria-label": "Process", hidden: true, onchange: () => this.#chooseProcess() });
    this.alerts = h("div", { class: "alerts", role: "alert" });
    this.honesty = h("span", { class: "hint" });
    this.live = h("button", { type: "button", hidden: true, onclick: () => this.#follow(this.#target) }, "Back to the live profiler");
    const tabs = h("nav", { class: "tabs", role: "tablist", "aria-label": "Views", onkeydown: (/** @type {KeyboardEvent} */ event) => this.#turn(event) });
    for (const [id, label, view] of this.#views) {
      const tab = h("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `view-${id}`, onclick: () => this.#open(id) }, label);
      this.#tabs.set(id, tab);
      tabs.append(tab);
      setAttribute(view.element, "id", `view-${id}`);
      setAttribute(view.element, "role", "tabpanel");
      setAttribute(view.element, "aria-labelledby", `tab-${id}`);
      view.element.hidden = true;
      view.onchange = () => {
        this.#remember();
        this.#draw();
      };
    }
    this.banner = h("div", { class: "banner", hidden: true }, this.reason, this.retry, this.live);
    root.replaceChildren(
      this.#fleet.element,
      h(
        "header",
        {},
        h("h1", {}, "rbkit"),
        this.all,
        this.target,
        this.name,
        this.processes,
        menu(this.state, "", this.facts),
        h("div", { class: "commands", role: "group", "aria-label": "Commands" }, this.#button(MEMORY, "record"), this.#button(CPU, "record"), this.#button(SNAPSHOT)),
        menu(
          "⋯",
          "More",
          ...MORE.map((spec) => this.#button(spec)),
          h("button", { type: "button", title: "all that was received, in the format of tornado-rbkit record", onclick: () => this.#save() }, "Save session"),
          fileButton("Open session…", "show a saved session instead of the live profiler", ".rbkit", (/** @type {File} */ file) => this.#openFile(file)),
        ),
      ),
      this.banner,
      this.alerts,
      tabs,
      h("main", {}, ...this.#views.map(([, , view]) => view.element)),
      h("footer", {}, this.honesty),
    );
    onFailure((/** @type {string} */ message) => this.#fail(`The page's worker failed: ${message}. Reload the page.`));
    addEventListener("hashchange", () => this.#go());
    addEventListener("popstate", ({ state }) => {
      this.#go(); // before the view puts its choices into the address
      const target = new URLSearchParams(location.search).get("target");
      if (target !== null && target !== this.#target) this.#follow(target);
      this.#view?.back?.(state);
    });
    addEventListener("visibilitychange", () => this.#tick());
    addEventListener("visibilitychange", () => document.hidden || this.#findTargets());
    addEventListener("beforeunload", (event) => {
      if (this.#header?.losesOnReload && !this.#fleet.isShown) event.preventDefault(); // the browser asks, if the user did anything on the page
    });
    this.#go();
  }

  /** Find the profiler, follow it and start the timers. */
  async start() {
    await this.#findTargets();
    if (this.#target === null && this.#targets.length > 1) this.#showFleet();
    else if (this.#target === null && (await this.#nothingToFollow())) this.#target = "";
    else if (!this.#fleet.isShown) await this.#follow(this.#target ?? this.#targets[0]?.name ?? "");
    setInterval(() => this.#tick(), HEADER_SECONDS * 1000);
    setInterval(() => document.hidden || this.#findTargets(), TARGETS_SECONDS * 1000);
  }

  /** Draw, unless the page is hidden; the worker continues to count. */
  async #tick() {
    if (document.hidden || this.#busy || this.#fleet.isShown) return;
    this.#busy = true;
    try {
      const before = this.#header?.session;
      /** @type {Header} */
      const header = await ask("header");
      this.#header = header;
      if (before !== undefined && header.session !== before) for (const [, , view] of this.#views) view.forget?.();
      this.#drawHeader(header);
      if (this.#view !== null && performance.now() - this.#drawnAt >= this.#view.refreshSeconds * 1000) await this.#draw();
    } finally {
      this.#busy = false;
    }
  }

  async #draw() {
    if (this.#header === null || this.#view === null) return;
    this.#drawnAt = performance.now();
    await this.#view.update(this.#header, this.#process ?? newest(this.#header.processes).number);
  }

  /** @param {string} id */
  #open(id) {
    const [name, , view] = this.#views.find(([each]) => each === id) ?? this.#views[0];
    if (view === this.#view) return;
    this.#view = view;
    for (const [each, , { element }] of this.#views) {
      element.hidden = each !== name;
      setAttribute(this.#tabs.get(each), "aria-selected", String(each === name));
      setAttribute(this.#tabs.get(each), "tabindex", each === name ? "0" : "-1");
    }
    this.#remember();
    this.#draw();
  }

  /** Show what the address names: `#view?choices`. */
  #go() {
    const [id, choices] = location.hash.slice(1).split("?");
    if (id === FLEET && "listed" in document.documentElement.dataset) {
      this.#showFleet(new URLSearchParams(choices));
      return;
    }
    const [, , view] = this.#views.find(([each]) => each === id) ?? [];
    if (choices !== undefined) view?.restore?.(new URLSearchParams(choices));
    this.#open(id);
  }

  /** Put the view and what is chosen in it into the address, for a reload and to share. */
  #remember() {
    const [name] = this.#views.find(([, , view]) => view === this.#view) ?? [];
    const choices = Object.entries(this.#view?.choices ?? {}).filter(([, value]) => value !== "");
    const hash = `#${name}${choices.length ? `?${new URLSearchParams(choices)}` : ""}`;
    if (location.hash !== hash) history.replaceState(history.state, "", hash);
  }

  /** @param {KeyboardEvent} event */
  #turn(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const ids = this.#views.map(([id]) => id);
    const at = ids.findIndex((id) => this.#tabs.get(id) === document.activeElement);
    const next = ids[(at + step + ids.length) % ids.length];
    this.#open(next);
    this.#tabs.get(next)?.focus();
  }

  // The profiler

  /** Update the list of named profilers; follow the first if there was none before. */
  async #findTargets() {
    if (!("listed" in document.documentElement.dataset) || this.#fleet.isShown) return;
    try {
      const answer = await fetch(`targets${query}`);
      if (!answer.ok) return; // the WebSocket is refused as well and reports why
      this.#targets = await answer.json();
    } catch {
      return; // the server is unreachable, which the connection's state shows
    }
    const names = this.#targets.map(({ name }) => name);
    if (this.#target === "" && names.length && this.#header?.state !== "live") await this.#follow(names[0]);
    if (this.#header?.state === "gone" && names.includes(this.#target ?? "")) await ask("reconnect");
    this.#drawTarget(names.length);
  }

  /**
   * Show the target's name and the way to all others, if there are any.
   *
   * @param {number} count
   */
  #drawTarget(count) {
    this.all.hidden = count < 2;
    this.target.hidden = count < 2 || !this.#target;
    setText(this.all, `‹ All ${format.count(count)} profilers`);
    this.all.href = this.#fleet.address;
    setText(this.target, this.#target ?? "");
  }

  // All profilers

  /** Show all profilers, and follow none. */
  #showFleet(choices = new URLSearchParams()) {
    document.documentElement.classList.add(FLEET);
    this.#fleet.show(choices);
    this.#target = null;
    ask("leave");
  }

  /**
   * Go from a profiler to all of them, so that the browser's Back returns to it.
   *
   * @param {MouseEvent} event
   */
  #leave(event) {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return; // the browser opens it elsewhere
    event.preventDefault();
    history.pushState(null, "", this.all.href);
    this.#go();
  }

  /**
   * Go from all profilers to one of them, so that the browser's Back returns to them.
   *
   * @param {string} name
   */
  async #visit(name) {
    history.pushState(null, "", addressOf(name));
    await this.#follow(name);
    this.#go();
    this.#remember();
    await this.#findTargets();
  }

  /** Return whether the server has no profiler, not even an unnamed one (Jupyter before a kernel has a profiler). */
  async #nothingToFollow() {
    if (this.#targets.length || !("listed" in document.documentElement.dataset)) return false;
    try {
      const answer = await fetch(`status${query}`);
      const { targets } = answer.ok ? await answer.json() : {};
      return targets !== undefined && !Object.keys(targets).length;
    } catch {
      return false; // the server is unreachable, which the connection's state shows
    }
  }

  /** @param {string | null} name */
  async #follow(name) {
    document.documentElement.classList.remove(FLEET);
    this.#fleet.hide();
    this.#target = name;
    this.#process = null;
    this.#drawTarget(this.#targets.length);
    const url = new URL(location.href);
    if (name) url.searchParams.set("target", name);
    if (url.href !== location.href) history.replaceState(null, "", url);
    const ws = new URL(`${name ? `${encodeURIComponent(name)}/` : ""}ws${query}`, location.href);
    ws.protocol = ws.protocol.replace("http", "ws");
    ws.searchParams.set("encoding", "binary"); // whatever the server's default is
    await ask("connect", { tab: this.#tab, target: `${location.pathname} ${name}`, url: ws.href, named: Boolean(name) });
    await this.#tick();
  }

  #chooseProcess() {
    if (this.#header === null) return;
    this.#process = Number(this.processes.value) === newest(this.#header.processes).number ? null : Number(this.processes.value);
    this.#draw();
  }

  // Commands

  /**
   * Return a button that sends a command; `#drawCommands` keeps its label and state.
   *
   * @param {Command} spec
   * @param {string | null} kind
   * @returns {HTMLButtonElement}
   */
  #button(spec, kind = null) {
    const button = h("button", { type: "button", class: kind, onclick: () => this.#send(button.dataset.command, button) });
    this.#buttons.push({ spec, button });
    return button;
  }

  /**
   * @param {string} command
   * @param {HTMLButtonElement | null} button
   */
  async #send(command, button) {
    if (button?.getAttribute("aria-disabled")) return;
    if (command === "objectspace_snapshot") {
      this.#snapshots.asked = true;
      this.#open("snapshots");
      this.#draw();
    }
    const error = await ask("command", command);
    if (error !== null) {
      this.#fail(`${command}: ${error}`);
      if (command === "objectspace_snapshot") this.#snapshots.asked = false;
    }
    await this.#tick();
  }

  /**
   * Return why a command cannot be sent now, null if it can.
   *
   * @param {Header} header
   * @param {string} command
   */
  #obstacle({ state, pending }, command) {
    if (!this.#allowed.has(command)) return "not allowed here: the server is read-only, or its setting `commands` leaves it out";
    if (state === "file") return "this is a file: go back to the live profiler first";
    if (state !== "live") return `not connected: ${STATES[state]}`;
    if (pending) return "another command is waiting for its reply";
    return null;
  }

  /** @param {string} text */
  #fail(text) {
    while (this.alerts.children.length >= SHOWN_FAILURES) this.alerts.firstChild.remove();
    const alert = h("p", {}, text, " ", h("button", { type: "button", "aria-label": "Dismiss", onclick: () => alert.remove() }, "×"));
    this.alerts.append(alert);
    setTimeout(() => alert.remove(), FAILURE_SECONDS * 1000);
  }

  // Files

  async #save() {
    if (this.#header === null) return;
    const { facts } = this.#header;
    const file = await ask("sessionFile");
    save(file, `${facts ? `${facts.process_name.replace(/[^\w.-]+/g, "_")}-${facts.pid}` : "session"}.rbkit`);
  }

  /** @param {File} file */
  async #openFile(file) {
    try {
      await ask("open", file);
      this.#process = null;
    } catch (error) {
      this.#fail(/** @type {Error} */ (error).message);
    }
    await this.#tick();
  }

  // The header

  /** @param {Header} header */
  #drawHeader(header) {
    const { state, reason, retryAt, source, processes } = header;
    setText(this.state, STATES[state]);
    setAttribute(this.state, "data-state", state);
    const wait = retryAt === null ? "" : ` Trying again in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))} s.`;
    const { file = "", bytes = 0, size = 0, damage = null } = source ?? {};
    const reading = damage ?? (bytes < size ? `${file}, read ${format.percent(bytes, size)}` : file);
    const { howToStart } = document.documentElement.dataset;
    const absent = `${howToStart} It is shown here at once.`;
    const gone = `Its process ended, or its profiler was stopped. ${howToStart} This page follows it again when it is back.`;
    setText(this.reason, state === "absent" ? absent : state === "gone" ? gone : state === "file" ? reading : [reason, reading].filter(Boolean).join(" ") + wait);
    this.retry.hidden = retryAt === null && !["refused", "gone"].includes(state);
    this.live.hidden = state !== "file";
    this.banner.hidden = !this.reason.textContent && this.retry.hidden && this.live.hidden;
    this.#drawFacts(header);
    this.#drawProcesses(processes);
    this.#drawCommands(header);
    this.#drawHonesty(header);
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
          ...((clients ?? 1) > 1 ? [["viewers", clients]] : []),
        ]
      : [];
    shown.forEach(([name, value], i) => {
      const item = this.facts.children[i] ?? this.facts.appendChild(h("div", {}, h("dt"), h("dd")));
      setText(item.firstChild, name);
      setText(item.lastChild, String(value));
    });
    while (this.facts.children.length > shown.length) this.facts.lastChild.remove();
    setText(this.name, facts ? `${format.shortName(facts.process_name)}, pid ${facts.pid}` : "");
    setText(document.querySelector("title"), facts ? `${facts.process_name}: rbkit` : "rbkit");
  }

  /** @param {ProcessSummary[]} processes */
  #drawProcesses(processes) {
    this.processes.hidden = processes.length < 2;
    const last = newest(processes).number;
    if (!processes.some(({ number }) => number === this.#process)) this.#process = null;
    const drawn = JSON.stringify(processes.map(({ number, facts, since }) => [number, facts?.pid, since]));
    if (drawn !== this.#drawnProcesses) {
      this.#drawnProcesses = drawn;
      this.processes.replaceChildren(
        ...processes.map(({ number, facts, since }) => {
          const name = facts ? `pid ${facts.pid}` : format.clock(since);
          return h("option", { value: number }, number === last ? "newest process" : `earlier process, ${name}`);
        }),
      );
    }
    this.processes.value = String(this.#process ?? last);
  }

  /** @param {Header} header */
  #drawCommands(header) {
    const { facts } = header;
    for (const { spec, button } of this.#buttons) {
      const command = spec.command(facts);
      button.dataset.command = command;
      setText(button, spec.label(facts));
      setDisabled(button, this.#obstacle(header, command), `${spec.title} (${command})`);
      if (spec.hidden) button.hidden = spec.hidden(facts);
      if (spec.pressed) setAttribute(button, "aria-pressed", String(spec.pressed(facts)));
    }
    for (const button of [this.#snapshots.take, this.#snapshots.growth.button, this.#overview.find]) setDisabled(button, this.#obstacle(header, "objectspace_snapshot"));
  }

  /** @param {Header} header */
  #drawHonesty({ session, messages, bytes, missing, dropped, unreadable, recorded, notKept, log, leftOut }) {
    const parts = [`${format.count(messages)} messages, ${format.bytes(bytes)} received`];
    if (missing) parts.push(`${format.count(missing)} missing`);
    if (dropped) parts.push(`${format.count(dropped)} of them reported by the server: this page was too slow, or they were lost before it`);
    if (unreadable) parts.push(`${format.count(unreadable)} not readable`);
    if (notKept) parts.push(`of which the last ${format.bytes(recorded)} can be saved`);
    if (leftOut) parts.push(`${format.count(leftOut)} notes left out`);
    setText(this.honesty, parts.join("; "));
    const told = this.#told[0] === session ? this.#told[1] : 0;
    for (const { number, text } of log) if (number > told) this.#fail(text);
    this.#told = [session, log.at(-1)?.number ?? told];
  }
}

/** @param {ProcessSummary[]} processes */
function newest(processes) {
  return processes[processes.length - 1];
}

/** @param {Facts} facts */
function protocol({ rbkit_protocol_version: version }) {
  return version.split(".")[0] === PROTOCOL_MAJOR ? version : `${version}, of which this page supports ${PROTOCOL_MAJOR}`;
}

new Page(/** @type {HTMLElement} */ (document.getElementById("page"))).start();