// The snapshots view: a snapshot by class or by place, the difference of two snapshots, and the objects in it.

import { Account } from "./account.js";
import { classTable } from "./classtables.js";
import { GrowthFinder, Suspects } from "./growth.js";
import { fileButton, h, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { Latest } from "./latest.js";
import { Members, UNKNOWN_PLACES } from "./members.js";
import { ObjectDetail } from "./object.js";
import { ask, sender } from "./rpc.js";
import { SnapshotList } from "./snapshotlist.js";

const SILENCE_SECONDS = 5; // without a part of an incoming snapshot

/**
 * @typedef {import("./rpc.js").Header} Header
 * @typedef {import("./classtables.js").By} By
 * @typedef {import("./snapshotlist.js").Summary} Summary
 * @typedef {{objects: number, expected: number, silentSeconds: number}} Incoming
 * @typedef {{snapshot: string, against: string, name: string, object: string, sort: string}} Wanted By an address.
 */

export class SnapshotsView {
  element;
  refreshSeconds = 1;
  /** @type {(() => void) | undefined} Called when what the view shows was chosen anew. */
  onchange;
  asked = false; // true if the user of this page asked for a snapshot
  /** @type {number | null} */
  #number = null; // of the snapshot in view
  /** @type {number | null} */
  #against = null; // of the earlier snapshot it is compared with
  /** @type {string | null} */
  #name = null; // of the class or place whose objects are listed
  /** @type {Summary[]} */
  #known = []; // summaries of the snapshots
  /** @type {Wanted | null} */
  #wanted = null; // what an address asks for, until there is such a snapshot
  #drawn = "";
  #lists = new Latest(); // requests for the list of snapshots
  #rows = new Latest(); // requests for the classes or places
  #found = new Latest(); // requests for what grows

  /**
   * @param {object} options
   * @param {(send: import("./rpc.js").Send) => Promise<void>} options.takeSnapshot
   * @param {HTMLButtonElement} options.trace Starts or stops tracing allocations.
   */
  constructor({ takeSnapshot, trace }) {
    this.growth = new GrowthFinder({ onfound: (before, after) => this.#choosePair(after, before) });
    this.suspects = new Suspects({ onopen: (/** @type {number} */ id) => this.#showObject(id) });
    this.account = new Account();
    this.detail = new ObjectDetail({ onchange: () => this.#mark() });
    this.take = h("button", { type: "button", onclick: () => this.#take(takeSnapshot) }, "Take a snapshot");
    this.undo = h("button", { type: "button", hidden: true, onclick: () => this.#undoRemove() }, "Undo Remove");
    this.computing = h("p", { class: "hint", role: "status" });
    this.list = new SnapshotList({ show: (number) => this.#choosePair(number, null), removed: () => this.onchange?.() });
    this.members = new Members({ onopen: (id) => this.#showObject(id) });
    this.progress = h("progress", { max: 1, hidden: true, "aria-label": "Snapshot coming in" });
    this.note = h("p", { class: "note", role: "status" });
    this.filter = h("input", { type: "search", placeholder: "class or file name", "aria-label": "Filter by class name", oninput: () => this.#refilter() });
    this.compare = h("select", { "aria-label": "Compare with", onchange: () => this.#choosePair(this.#number, Number(this.compare.value) || null) });
    this.by = h("select", { "aria-label": "Group by", onchange: () => this.#groupBy() }, h("option", { value: "class" }, "class"), h("option", { value: "site" }, "file and line"));
    this.summary = h("span", { class: "hint" });
    this.sites = h("p", { class: "hint" }, UNKNOWN_PLACES, " ", TRACING_COST);
    const on = { onsort: () => this.#refilter(), onselect: (/** @type {string} */ name) => this.#choose(name) };
    const table = (/** @type {By} */ by, /** @type {boolean} */ isCompared) => classTable(by, isCompared, on);
    this.tables = { class: [table("class", false), table("class", true)], site: [table("site", false), table("site", true)] };
    this.tableBox = h("div", {}, ...Object.values(this.tables).flatMap((some) => some.map(({ element }) => element)));
    this.content = h(
      "div",
      { hidden: true },
      this.account.element,
      this.computing,
      this.suspects.element,
      h("div", { class: "bar" }, h("label", {}, "by ", this.by), h("label", {}, "compare with ", this.compare), this.filter, this.summary),
      this.sites,
      h("div", { class: "columns" }, this.tableBox, this.members.element, this.detail.element),
    );
    this.element = h(
      "section",
      { "aria-label": "Snapshots" },
      h(
        "div",
        { class: "bar" },
        this.growth.element,
        this.take,
        trace,
        fileButton("Load snapshot…", "add the snapshots of a saved file to these", ".rbkit", (file) => this.#load(file)),
        this.undo, // what comes and goes is last, so that no button moves under the pointer
        this.progress,
      ),
      this.note,
      this.list.element,
      this.content,
    );
  }

  /** What is chosen in the view, for the address. Snapshots by their times, which are the same for every viewer. */
  get choices() {
    if (this.#wanted !== null) return { ...this.#wanted, by: this.#byText, filter: this.filter.value };
    const time = (/** @type {number | null} */ number) => String(this.#summary(number)?.time ?? "");
    const object = this.detail.id === null ? "" : format.objectId(this.detail.id);
    return { snapshot: time(this.#number), against: time(this.#against), by: this.#byText, name: this.#name ?? "", object, filter: this.filter.value, sort: this.#table.order };
  }

  /** @param {URLSearchParams} choices */
  restore(choices) {
    const text = (/** @type {string} */ name) => choices.get(name) ?? "";
    this.filter.value = text("filter");
    this.by.value = text("by") === "site" ? "site" : "class";
    const wanted = { snapshot: text("snapshot"), against: text("against"), name: text("name"), object: text("object"), sort: text("sort") };
    this.#wanted = Object.values(wanted).some(Boolean) ? wanted : null;
    this.#drawn = "";
  }

  /** Reset the view for another session. */
  forget() {
    for (const one of [this.#lists, this.#rows, this.#found]) one.cancel();
    this.growth.forget();
    this.members.clear();
    this.detail.clear();
    this.#known = [];
    this.#drawn = "";
    this.#number = this.#against = this.#name = null;
    this.failed = this.asked = false;
  }

  /** @param {Header} header */
  async update(header) {
    await this.#lists.ask("snapshots", null, (data) => this.#draw(data, header));
  }

  /**
   * @param {{list: Summary[], incoming: Incoming[], canUndo: boolean}} data
   * @param {Header} header
   */
  async #draw({ list, incoming, canUndo }, header) {
    this.undo.hidden = !canUndo;
    const objects = incoming.reduce((sum, one) => sum + one.objects, 0);
    const expected = incoming.reduce((sum, one) => sum + one.expected, 0);
    this.progress.hidden = !incoming.length;
    if (incoming.length) this.progress.value = objects / Math.max(1, expected);
    const silent = Math.min(...incoming.map(({ silentSeconds }) => silentSeconds));
    const silence = silent >= SILENCE_SECONDS ? `, nothing for ${format.duration(silent)}` : "";
    if (incoming.length) this.#tell(`Receiving a snapshot: ${format.count(objects)} of ${format.count(expected)} objects${silence}.`);
    else if (this.asked) this.#tell("A snapshot was requested. The process is listing its objects…");
    else if (!this.failed) this.#tell(this.#wanted?.snapshot ? ELSEWHERE : list.length ? "" : EMPTY);
    const computing = list.find(({ progress }) => progress > 0 && progress < 1);
    setText(this.computing, computing ? `Computing who holds what in snapshot ${computing.number}: ${format.percent(computing.progress, 1)}` : "");
    const drawn = JSON.stringify([list.map((one) => ({ ...one, progress: 0 })), header.processes.length]);
    if (drawn === this.#drawn) return;
    const before = this.#known;
    this.#drawn = drawn;
    this.#known = list;
    this.list.draw(list, header);
    const newest = list.at(-1);
    const has = (/** @type {number | null} */ wanted) => list.some(({ number }) => number === wanted);
    const isNew = newest && !before.some(({ number }) => number === newest.number);
    // A snapshot that another viewer took does not replace the one in view.
    if (this.#wanted !== null && (await this.#showWanted(this.#wanted))) return;
    if (isNew && (this.asked || this.#name === null)) {
      this.asked = false;
      // From the second snapshot on, show the difference to the previous one.
      await this.#show(newest.number, list.at(-2)?.number ?? null);
    } else if (!has(this.#number)) {
      await this.#show(newest?.number ?? null, null);
    } else if (this.#against !== null && !has(this.#against)) {
      await this.#show(this.#number, null);
    } else {
      this.#drawChoice();
    }
  }

  /** @param {(send: import("./rpc.js").Send) => Promise<void>} takeSnapshot */
  async #take(takeSnapshot) {
    if (this.take.getAttribute("aria-disabled")) return;
    const send = await sender();
    const refused = await this.growth.collectFirst(send);
    if (refused !== null) this.#tell(`Garbage was not collected: ${refused}.`);
    await takeSnapshot(send);
  }

  /** @param {string} text */
  #tell(text) {
    setText(this.note, text);
  }

  /** @returns {By} */
  get #by() {
    return this.by.value === "site" ? "site" : "class";
  }

  get #byText() {
    return this.#by === "class" ? "" : this.#by;
  }

  get #table() {
    return this.tables[this.#by][this.#against === null ? 0 : 1];
  }

  /** @param {number | null} number */
  #summary(number) {
    return this.#known.find((one) => one.number === number);
  }

  /**
   * Show what an address asks for; return whether there is such a snapshot.
   *
   * @param {Wanted} wanted
   */
  async #showWanted(wanted) {
    const at = (/** @type {string} */ time) => this.#known.find((one) => String(one.time) === time)?.number ?? null;
    const number = wanted.snapshot ? at(wanted.snapshot) : this.#known.at(-1)?.number ?? null;
    if (number === null) return false;
    this.#wanted = null;
    this.#tell("");
    this.#against = at(wanted.against);
    this.#table.order = wanted.sort;
    this.#name = wanted.name || null;
    await this.#show(number, this.#against);
    if (wanted.object) this.#showObject(Number(wanted.object));
    return true;
  }

  /** Tell the page that another choice is in view. */
  #mark() {
    this.members.table.select(this.detail.id);
    this.onchange?.();
  }

  /**
   * Show what the user chose, whatever the address asked for.
   *
   * @param {number | null} number
   * @param {number | null} against
   */
  async #choosePair(number, against) {
    this.#wanted = null;
    await this.#show(number, against);
  }

  /**
   * @param {number | null} number
   * @param {number | null} against
   */
  async #show(number, against) {
    this.#number = number;
    this.content.hidden = number === null;
    this.#rows.cancel();
    if (number === null) return;
    this.#against = against;
    this.#drawChoice();
    this.suspects.hide();
    this.#found.cancel();
    if (against !== null) this.#found.ask("suspects", { before: against, after: number }, (data) => this.suspects.show(data));
    await this.#group();
  }

  /** Mark the snapshot in view, and list the snapshots to compare it with. */
  #drawChoice() {
    this.account.show(this.#summary(this.#number));
    this.list.mark(this.#number);
    const others = this.#known.filter((one) => one.number !== this.#number);
    this.compare.replaceChildren(
      h("option", { value: "" }, "nothing"),
      ...others.map((one) => h("option", { value: one.number }, `snapshot ${one.number}, ${format.clock(one.time)}`)),
    );
    this.compare.value = String(this.#against ?? "");
  }

  async #groupBy() {
    this.#wanted = this.#name = null;
    await this.#group();
  }

  /** Show the table of the chosen grouping, and list the objects of the chosen row. */
  async #group() {
    for (const table of Object.values(this.tables).flat()) table.element.hidden = table !== this.#table;
    this.sites.hidden = this.#by === "class";
    this.detail.clear();
    this.#markRow();
    await this.#resort();
    await this.members.show(this.#chosen);
  }

  #refilter() {
    this.onchange?.();
    return this.#resort();
  }

  async #resort() {
    const [table, by, against] = [this.#table, this.#by, this.#against];
    const query = { by, filter: this.filter.value, sort: table.sort, descending: table.descending, limit: table.limit };
    /** @param {{rows: object[], matching: number}} data */
    const draw = (data) => {
      table.rearrange();
      table.update(data.rows, data.matching);
      const cut = data.matching > data.rows.length ? `, ${data.rows.length} are shown` : "";
      const kind = by === "class" ? "classes" : "places";
      const what = against === null ? kind : `${kind} changed since snapshot ${against}`;
      setText(this.summary, `${format.count(data.matching)} ${what}${cut}`);
    };
    if (against === null) await this.#rows.ask("snapshotRows", { number: this.#number, ...query }, draw);
    else await this.#rows.ask("snapshotDifference", { before: against, after: this.#number, ...query }, draw);
  }

  /** @param {string} name */
  async #choose(name) {
    this.#wanted = null;
    this.#name = name;
    this.detail.clear();
    this.#markRow();
    await this.members.show(this.#chosen);
    if (!this.members.element.hidden) this.members.title.focus({ preventScroll: false });
  }

  get #chosen() {
    return { number: this.#number, against: this.#against, by: this.#by, name: this.#name };
  }

  #markRow() {
    for (const table of Object.values(this.tables).flat()) table.select(this.#name);
    this.members.clear();
    this.onchange?.();
  }

  /** @param {number} id */
  #showObject(id) {
    if (this.#number !== null) this.detail.show(this.#number, id);
  }

  /** @param {File} file */
  async #load(file) {
    this.failed = false;
    this.#tell(`Reading ${file.name}…`);
    try {
      const { count, damage } = await ask("addSnapshots", file);
      if (!count) throw new Error(damage ?? `${file.name} has no snapshot in it`);
      if (damage !== null) throw new Error(`${damage}. The objects that could be read are shown.`);
    } catch (error) {
      this.failed = true;
      this.#tell(/** @type {Error} */ (error).message);
    }
  }

  async #undoRemove() {
    await ask("undoRemoveSnapshot");
    this.onchange?.();
  }
}

const EMPTY =
  "No snapshot yet. To find a leak, press Find what grows: it takes one, lets the program do its work for a while, " +
  "takes another, and shows what the second has more of.";

const TRACING_COST =
  "Trace allocations starts tracemalloc in the process: objects created from then on have a place. While it is on, code that " +
  "creates objects takes 3 to 5 times its CPU time, loops over integers up to 30 times, and each byte of small objects takes " +
  "up to 1.4 bytes more (measured with CPython 3.11 and 3.13).";

const ELSEWHERE = "The address names a snapshot that this page has not received: whoever took it can save it as a file, and Load snapshot… shows it.";
