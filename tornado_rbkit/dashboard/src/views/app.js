// The page: the choice of profiler, its state, its commands, and the views.

import { hashOf, tabName } from "./address.js";
import { Alerts } from "./alerts.js";
import { CLOCKS, CPU, Commands, MEMORY, MORE, SNAPSHOT, TAKE_SNAPSHOT, TRACING } from "./commands.js";
import { CpuView } from "./cpu/view.js";
import { addressOf, FLEET, FleetView } from "./fleet.js";
import { MemoryView } from "./memory.js";
import { ObjectsView } from "./objects.js";
import { OverviewView } from "./overview.js";
import { ask, onFailure, sender } from "./rpc.js";
import { SnapshotsView } from "./snapshots.js";
import { Processes, Status } from "./status.js";
import { Targets, areListed } from "./targets.js";
import { fileButton, h, menu, save, setAttribute } from "./widgets/dom.js";

/**
 * @typedef {import("./rpc.js").Header} Header
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
 */

const HEADER_SECONDS = 0.25;
const TARGETS_SECONDS = 5;

class Page {
  #alerts = new Alerts();
  #commands = new Commands({ onsend: (command) => this.#send(command) });
  #status = new Status({ retry: () => ask("reconnect"), goLive: () => this.#follow(this.#targets.target) });
  #processes = new Processes({ onchange: () => this.#draw() });
  #targets = new Targets({ onleave: () => this.#go() });
  #fleet = new FleetView((name) => this.#visit(name));
  /** @type {[string, string, View][]} */
  #views;
  #snapshots;
  /** @type {[HTMLButtonElement, string][]} */
  #procedures; // buttons that send a command among other things
  /** @type {View | null} */
  #view = null;
  /** @type {Map<string, HTMLButtonElement>} */
  #tabs = new Map();
  #tab = tabName();
  /** @type {Header | null} */
  #header = null;
  #drawnAt = 0;
  #busy = false;

  /** @param {HTMLElement} root */
  constructor(root) {
    const takeSnapshot = (/** @type {import("./rpc.js").Send} */ send) => this.#send(TAKE_SNAPSHOT, send);
    const recordMemory = () => this.#commands.button({ ...MEMORY, label: () => "Record memory now" }, "main");
    this.#snapshots = new SnapshotsView({ takeSnapshot, trace: this.#commands.button(TRACING) });
    const overview = new OverviewView({
      recordMemory: recordMemory(),
      perform: (command, send) => this.#perform(command, send),
      findGrowth: () => {
        this.#open("snapshots");
        this.#snapshots.growth.find();
      },
      open: (id) => this.#open(id),
    });
    this.#views = [
      ["overview", "Overview", overview],
      ["memory", "Memory", new MemoryView({ record: recordMemory() })],
      ["objects", "Objects", new ObjectsView({ record: recordMemory() })],
      ["snapshots", "Snapshots", this.#snapshots],
      ["cpu", "CPU", new CpuView({ record: this.#commands.button({ ...CPU, label: () => "Record CPU now" }, "main"), clocks: CLOCKS.map((spec) => this.#commands.button(spec)) })],
    ];
    this.#procedures = [
      [this.#snapshots.take, TAKE_SNAPSHOT],
      [this.#snapshots.growth.button, TAKE_SNAPSHOT],
      [overview.find, TAKE_SNAPSHOT],
      [overview.slow.button, CPU.command(null)],
    ];
    root.replaceChildren(
      this.#fleet.element,
      this.#makeBar(),
      this.#status.banner,
      this.#alerts.element,
      this.#makeTabs(),
      h("main", {}, ...this.#views.map(([, , view]) => view.element)),
      h("footer", {}, this.#status.honesty),
    );
    this.#listen();
    this.#go();
  }

  #makeBar() {
    const button = this.#commands.button.bind(this.#commands);
    return h(
      "header",
      {},
      h("h1", {}, "rbkit"),
      ...this.#targets.elements,
      this.#status.name,
      this.#processes.element,
      this.#status.menu,
      h("div", { class: "commands", role: "group", "aria-label": "Commands" }, button(MEMORY, "record"), button(CPU, "record"), button(SNAPSHOT)),
      menu(
        "⋯",
        "More",
        ...MORE.map((spec) => button(spec)),
        h("button", { type: "button", title: "all that was received, in the format of tornado-rbkit record", onclick: () => this.#save() }, "Save session"),
        fileButton("Open session…", "show a saved session instead of the live profiler", ".rbkit", (/** @type {File} */ file) => this.#openFile(file)),
      ),
    );
  }

  #makeTabs() {
    const tabs = h("div", { role: "tablist", "aria-label": "Views", onkeydown: (/** @type {KeyboardEvent} */ event) => this.#turn(event) });
    for (const [id, label, view] of this.#views) {
      const tab = h("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `view-${id}`, onclick: () => this.#open(id) }, label);
      this.#tabs.set(id, tab);
      tabs.append(tab);
      setAttribute(view.element, "id", `view-${id}`);
      setAttribute(view.element, "role", "tabpanel");
      view.element.prepend(h("h2", {}, label));
      setAttribute(view.element, "aria-labelledby", `tab-${id}`);
      view.element.hidden = true;
      view.onchange = () => {
        this.#remember();
        this.#draw();
      };
    }
    return h("nav", { class: "tabs", "aria-label": "Views" }, tabs);
  }

  #listen() {
    onFailure((/** @type {string} */ message) => this.#alerts.show(`The page's worker failed: ${message}. Reload the page.`));
    addEventListener("hashchange", () => this.#go());
    addEventListener("popstate", ({ state }) => {
      this.#go(); // before the view puts its choices into the address
      const target = new URLSearchParams(location.search).get("target");
      if (target !== null && target !== this.#targets.target) this.#follow(target);
      this.#view?.back?.(state);
    });
    addEventListener("visibilitychange", () => this.#tick());
    addEventListener("visibilitychange", () => document.hidden || this.#findTargets());
    addEventListener("beforeunload", (event) => {
      if (this.#header?.losesOnReload && !this.#fleet.isShown) event.preventDefault(); // the browser asks, if the user did anything on the page
    });
  }

  /** Find the profiler, follow it and start the timers. */
  async start() {
    await this.#findTargets();
    const { target, names } = this.#targets;
    if (target === null && names.length > 1) this.#showFleet();
    else if (target === null && (await this.#targets.areAbsent())) this.#targets.target = "";
    else if (!this.#fleet.isShown) await this.#follow(target ?? names[0] ?? "");
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

  /** @param {Header} header */
  #drawHeader(header) {
    this.#status.draw(header);
    this.#processes.draw(header.processes);
    this.#commands.draw(header, this.#procedures);
    this.#alerts.showLog(header);
  }

  async #draw() {
    if (this.#header === null || this.#view === null) return;
    this.#drawnAt = performance.now();
    await this.#view.update(this.#header, this.#processes.number);
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
    if (id === FLEET && areListed()) {
      this.#showFleet(new URLSearchParams(choices));
      return;
    }
    const [, , view] = this.#views.find(([each]) => each === id) ?? [];
    if (choices !== undefined) view?.restore?.(new URLSearchParams(choices));
    this.#open(id);
  }

  /** Put the view and what is chosen in it into the address, for a reload and to share. */
  #remember() {
    if (this.#fleet.isShown) return; // the user went back to it meanwhile
    const [name] = this.#views.find(([, , view]) => view === this.#view) ?? this.#views[0];
    const hash = hashOf(name, this.#view?.choices ?? {});
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
    if (this.#fleet.isShown || !(await this.#targets.find())) return;
    const { target, names } = this.#targets;
    if (target === "" && names.length && this.#header?.state !== "live") await this.#follow(names[0]);
    if (this.#header?.state === "gone" && names.includes(this.#targets.target ?? "")) await ask("reconnect");
    this.#targets.draw(this.#fleet.address);
  }

  /** Show all profilers, and follow none. */
  #showFleet(choices = new URLSearchParams()) {
    document.documentElement.classList.add(FLEET);
    this.#fleet.show(choices);
    this.#targets.target = null;
    ask("leave");
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

  /** @param {string | null} name */
  async #follow(name) {
    document.documentElement.classList.remove(FLEET);
    this.#fleet.hide();
    this.#processes.forget();
    const url = this.#targets.follow(name);
    this.#targets.draw(this.#fleet.address);
    await ask("connect", { tab: this.#tab, target: `${location.pathname} ${name}`, url, named: Boolean(name) });
    await this.#tick();
  }

  /**
   * Do what the user gave as a command.
   *
   * @param {string} command
   * @param {import("./rpc.js").Send | null} send If it is a part of what the user does with one click.
   */
  async #send(command, send = null) {
    const isSnapshot = command === TAKE_SNAPSHOT;
    if (isSnapshot) {
      this.#snapshots.asked = true;
      this.#open("snapshots");
      this.#draw();
    }
    const error = await this.#perform(command, send ?? (await sender()));
    if (error !== null) {
      this.#alerts.show(error);
      if (isSnapshot) this.#snapshots.asked = false;
    }
    await this.#tick();
  }

  /**
   * Send the commands of which a command consists; return why any of them was not carried out, null if all were.
   *
   * @param {string} command
   * @param {import("./rpc.js").Send} send
   */
  async #perform(command, send) {
    const errors = [];
    for (const each of this.#commands.steps(command, this.#header?.facts ?? null)) {
      const error = await send(each);
      if (error !== null) errors.push(`${each}: ${error}`);
    }
    return errors.length ? errors.join("; ") : null;
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
      this.#processes.forget();
    } catch (error) {
      this.#alerts.show(/** @type {Error} */ (error).message);
    }
    await this.#tick();
  }
}

new Page(/** @type {HTMLElement} */ (document.getElementById("page"))).start();
