// @ts-check
// The snapshots view: a snapshot by class, the difference of two snapshots, and the paths to an object.

import { GrowthFinder, Suspects } from "./growth.js";
import { fileButton, h, save, setAttribute, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { Latest } from "./latest.js";
import { ask } from "./rpc.js";
import { Table } from "./widgets/table.js";

const SHOWN = 200;
const SILENCE_SECONDS = 5; // without a part of an incoming snapshot

/**
 * @typedef {import("./rpc.js").Header} Header
 * @typedef {import("../model/snapshots.js").Snapshot} Snapshot
 * @typedef {Omit<ReturnType<Snapshot["summary"]>, "number"> & {number: number, from: string | null}} Summary
 * @typedef {{objects: number, expected: number, silentSeconds: number}} Incoming
 * @typedef {NonNullable<ReturnType<Snapshot["object"]>>} Details Of an object.
 * @typedef {ReturnType<Snapshot["waysOf"]>} Ways In which the objects of a class are held.
 * @typedef {Omit<Details["path"]["steps"][number], "heldBy"> & {heldBy?: string}} Item An object in a list.
 */

export class SnapshotsView {
  element;
  refreshSeconds = 1;
  /** @type {(() => void) | undefined} Called when a snapshot was removed. */
  onchange;
  /** @type {number | null} */
  #number = null; // of the snapshot in view
  /** @type {number | null} */
  #against = null; // of the earlier snapshot it is compared with
  /** @type {string | null} */
  #className = null;
  /** @type {number | null} */
  #object = null; // id
  /** @type {number[]} */
  #trail = []; // ids of the objects that were followed
  #drawn = "";
  #lists = new Latest(); // requests for the list of snapshots
  #rows = new Latest(); // requests for the classes
  #objects = new Latest(); // requests for the objects of the class
  #ways = new Latest(); // requests for the ways in which the objects of the class are held
  #found = new Latest(); // requests for what grows
  #details = new Latest(); // requests for the object

  /** @param {{takeSnapshot: () => Promise<void>}} options */
  constructor({ takeSnapshot }) {
    const number = (key, label, title, text) => ({ key, label, title, number: true, text });
    this.growth = new GrowthFinder({ onfound: (before, after) => this.#show(after, before) });
    this.suspects = new Suspects({ onopen: (id) => this.#follow(id, true) });
    this.take = h("button", { type: "button", onclick: () => this.#take(takeSnapshot) }, "Take a snapshot");
    this.computing = h("p", { class: "hint", role: "status" });
    this.list = h("ul", { class: "snapshots", "aria-label": "Snapshots" });
    this.progress = h("progress", { max: 1, hidden: true, "aria-label": "Snapshot coming in" });
    this.note = h("p", { class: "note", role: "status" });
    this.filter = h("input", { type: "search", placeholder: "class name", "aria-label": "Filter by class name", oninput: () => this.#resort() });
    this.compare = h("select", { "aria-label": "Compare with", onchange: () => this.#compareWith(this.compare.value) });
    this.summary = h("span", { class: "hint" });
    const tables = { key: (row) => row.name, onsort: () => this.#resort(), onselect: (row) => this.#chooseClass(row.name) };
    this.classes = new Table({
      ...tables,
      caption: "Classes in the snapshot",
      sort: "retained",
      columns: [
        { key: "name", label: "class", text: (row) => row.name },
        number("count", "objects", "how many", (row) => format.count(row.count)),
        number("bytes", "size", "of all these objects, without what they refer to", (row) => format.bytes(row.bytes)),
        number("retained", "retained", "what would be freed with them: their size, and what only they hold", (row) => format.bytes(row.retained)),
        number("unreachable", "unreachable", UNREACHABLE, (row) => format.count(row.unreachable)),
      ],
    });
    this.differences = new Table({
      ...tables,
      caption: "Classes, compared with the earlier snapshot",
      sort: "retained",
      columns: [
        { key: "name", label: "class", text: (row) => row.name },
        number("retained", "retained growth", "more than before would be freed with them", (row) => format.signedBytes(row.retained)),
        number("count", "growth", "objects more than before", (row) => format.signed(row.count)),
        number("bytes", "size growth", "bytes more than before", (row) => format.signedBytes(row.bytes)),
        number("appeared", "new", "objects that did not exist before", (row) => format.count(row.appeared)),
        number("gone", "gone", "objects that no longer exist", (row) => format.count(row.gone)),
        number("after", "now", "objects in total", (row) => format.count(row.after)),
        number("unreachable", "unreachable", UNREACHABLE, (row) => format.count(row.unreachable)),
      ],
    });
    this.objectsTitle = h("h3", { tabindex: "-1" });
    this.objects = new Table({
      caption: "Objects of the class",
      key: (row) => row.id,
      onselect: (row) => this.#follow(row.id, true),
      columns: [
        { label: "object", text: (row) => format.objectId(row.id) },
        { label: "size", number: true, text: (row) => format.bytes(row.size) },
        { label: "retained", number: true, text: (row) => format.bytes(row.retained) },
        { label: "made at", text: (row) => format.place(row.file, row.line), hint: (row) => row.file },
      ],
    });
    this.objectsNote = h("p", { class: "hint" });
    this.ways = h("ul", { class: "ways", "aria-label": "How they are held" });
    this.detail = h("div", { class: "detail" });
    this.tableBox = h("div", {}, this.classes.element, this.differences.element);
    this.objectsBox = h("div", { class: "objects" }, this.objectsTitle, h("h4", {}, "How they are held"), this.ways, this.objectsNote, this.objects.element);
    this.share = h("meter", { min: 0, max: 1, "aria-label": "Share of the resident memory that the objects explain" });
    this.shareText = h("span");
    this.account = h("p", { class: "hint account" }, this.share, " ", this.shareText);
    this.content = h(
      "div",
      { hidden: true },
      this.account,
      this.computing,
      this.suspects.element,
      h("div", { class: "bar" }, h("label", {}, "compare with ", this.compare), this.filter, this.summary),
      h("div", { class: "columns" }, this.tableBox, this.objectsBox, this.detail),
    );
    this.element = h(
      "section",
      { "aria-label": "Snapshots" },
      h(
        "div",
        { class: "bar" },
        this.growth.element,
        this.take,
        fileButton("Load snapshot…", "add the snapshots of a saved file to these", ".rbkit", (file) => this.#load(file)),
        this.progress,
      ),
      this.note,
      this.list,
      this.content,
    );
  }

  /** Reset the view for another session. */
  forget() {
    for (const one of [this.#lists, this.#rows, this.#objects, this.#ways, this.#found, this.#details]) one.cancel();
    this.growth.forget();
    this.#known = [];
    this.#drawn = "";
    this.#number = this.#className = null;
    this.failed = this.asked = false;
  }

  /** @param {Header} header */
  async update(header) {
    await this.#lists.ask("snapshots", null, (data) => this.#draw(data, header));
  }

  /**
   * @param {{list: Summary[], incoming: Incoming[]}} data
   * @param {Header} header
   */
  async #draw({ list, incoming }, header) {
    const objects = incoming.reduce((sum, one) => sum + one.objects, 0);
    const expected = incoming.reduce((sum, one) => sum + one.expected, 0);
    this.progress.hidden = !incoming.length;
    if (incoming.length) this.progress.value = objects / Math.max(1, expected);
    const silent = Math.min(...incoming.map(({ silentSeconds }) => silentSeconds));
    const silence = silent >= SILENCE_SECONDS ? `, nothing for ${format.duration(silent)}` : "";
    if (incoming.length) this.#tell(`Receiving a snapshot: ${format.count(objects)} of ${format.count(expected)} objects${silence}.`);
    else if (this.asked) this.#tell("A snapshot was requested. The process is listing its objects…");
    else if (!this.failed) this.#tell(list.length ? "" : EMPTY);
    const computing = list.find(({ progress }) => progress > 0 && progress < 1);
    setText(this.computing, computing ? `Computing who holds what in snapshot ${computing.number}: ${format.percent(computing.progress, 1)}` : "");
    const drawn = JSON.stringify([list.map((one) => ({ ...one, progress: 0 })), header.processes.length]);
    if (drawn === this.#drawn) return;
    const before = this.#known;
    this.#drawn = drawn;
    this.#known = list;
    this.#drawList(list, header);
    const newest = list.at(-1);
    const has = (/** @type {number | null} */ wanted) => list.some(({ number }) => number === wanted);
    const isNew = newest && !before.some(({ number }) => number === newest.number);
    // A snapshot that another viewer took does not replace the one in view.
    if (isNew && (this.asked || this.#className === null)) {
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

  /** @param {() => Promise<void>} takeSnapshot */
  async #take(takeSnapshot) {
    if (this.take.getAttribute("aria-disabled")) return;
    const refused = await this.growth.collectFirst();
    if (refused !== null) this.#tell(`Garbage was not collected: ${refused}.`);
    await takeSnapshot();
  }

  /** @type {Summary[]} */
  #known = []; // summaries of the snapshots
  asked = false; // true if the user of this page asked for a snapshot

  /** @param {string} text */
  #tell(text) {
    setText(this.note, text);
  }

  /**
   * @param {Summary[]} list
   * @param {Header} header
   */
  #drawList(list, header) {
    this.list.replaceChildren(
      ...list.map((one) => {
        const old = header.processes.length > 1 && one.process !== header.processes.at(-1)?.number;
        const part = one.ending === null ? "" : `, incomplete: ${format.count(one.objects)} of ${format.count(one.expected)} arrived, ${one.ending}`;
        const omitted = one.omitted ? `, ${format.count(one.omitted)} more are left out: more than this page can hold` : "";
        const unreadable = one.unreadable ? `, ${format.count(one.unreadable)} more could not be read` : "";
        const origin = one.from ? `, from ${one.from}` : old ? ", of an earlier process" : "";
        return h(
          "li",
          {},
          h(
            "button",
            { type: "button", "data-number": one.number, onclick: () => this.#show(one.number, null) },
            h("b", {}, `Snapshot ${one.number}`),
            ` ${format.clock(one.time)}: ${format.count(one.objects)} objects, ${format.bytes(one.bytes)}${part}${omitted}${unreadable}${origin}`,
          ),
          h("button", { type: "button", title: "save as a file", "aria-label": `Save snapshot ${one.number}`, onclick: () => this.#save(one) }, "Save"),
          h("button", { type: "button", title: "remove from the page", "aria-label": `Remove snapshot ${one.number}`, onclick: () => this.#remove(one) }, "Remove"),
        );
      }),
    );
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
    await this.#compareWith(against === null ? "" : String(against));
  }

  /** Show how much of the process's memory the objects explain. */
  #drawAccount() {
    const shown = this.#known.find((one) => one.number === this.#number);
    this.account.hidden = !shown?.resident;
    if (!shown?.resident) return;
    this.share.value = Math.min(1, shown.bytes / shown.resident);
    const parts = `${format.bytes(shown.bytes)} of ${format.bytes(shown.resident)} resident memory (${format.percent(shown.bytes, shown.resident)})`;
    setText(this.shareText, `The objects explain ${parts}. The rest is the interpreter, libraries and their own memory, and free space of the allocator.`);
  }

  /** Mark the snapshot in view, and list the snapshots to compare it with. */
  #drawChoice() {
    this.#drawAccount();
    for (const button of this.list.querySelectorAll("[data-number]")) {
      setAttribute(button, "aria-pressed", String(Number(button.dataset.number) === this.#number));
    }
    const others = this.#known.filter((one) => one.number !== this.#number);
    this.compare.replaceChildren(
      h("option", { value: "" }, "nothing"),
      ...others.map((one) => h("option", { value: one.number }, `snapshot ${one.number}, ${format.clock(one.time)}`)),
    );
    this.compare.value = String(this.#against ?? "");
  }

  /** @param {string} value */
  async #compareWith(value) {
    this.#against = value === "" ? null : Number(value);
    this.#drawChoice();
    this.classes.element.hidden = this.#against !== null;
    this.differences.element.hidden = this.#against === null;
    this.#chooseClass(null);
    this.suspects.hide();
    this.#found.cancel();
    const query = { before: this.#against, after: this.#number };
    if (this.#against !== null) this.#found.ask("suspects", query, (data) => this.suspects.show(data));
    await this.#resort();
  }

  async #resort() {
    const table = this.#against === null ? this.classes : this.differences;
    const query = { filter: this.filter.value, sort: table.sort, descending: table.descending, limit: SHOWN };
    const against = this.#against;
    /** @param {{rows: object[], matching: number}} data */
    const draw = (data) => {
      table.rearrange();
      table.update(data.rows);
      const cut = data.matching > data.rows.length ? `, ${data.rows.length} are shown` : "";
      const what = against === null ? "classes" : `classes changed since snapshot ${against}`;
      setText(this.summary, `${format.count(data.matching)} ${what}${cut}`);
    };
    if (against === null) await this.#rows.ask("snapshotClasses", { number: this.#number, ...query }, draw);
    else await this.#rows.ask("snapshotDifference", { before: against, after: this.#number, ...query }, draw);
  }

  /** @param {string | null} name */
  async #chooseClass(name) {
    this.#className = name;
    this.classes.select(name);
    this.differences.select(name);
    this.objectsBox.hidden = true;
    this.#objects.cancel();
    this.#ways.cancel();
    this.#open(null);
    if (name === null) return;
    const against = this.#against;
    this.ways.replaceChildren();
    this.#ways.ask("snapshotWays", { number: this.#number, name }, (data) => this.#drawWays(data));
    await this.#objects.ask("snapshotObjects", { number: this.#number, name, butNotIn: against }, (/** @type {ReturnType<Snapshot["objectsOf"]>} */ data) => {
      this.objectsBox.hidden = false;
      setText(this.objectsTitle, name);
      const which = against === null ? "objects" : `objects not in snapshot ${against}`;
      const cut = data.matching > data.rows.length ? `, the ${data.rows.length} that retain most are shown` : "";
      const unknown = data.rows.length && !data.rows.some((row) => row.file) ? ` ${UNKNOWN_PLACES}` : "";
      setText(this.objectsNote, `${format.count(data.matching)} ${which}${cut}.${unknown}`);
      this.objects.rearrange();
      this.objects.update(data.rows);
      this.objectsTitle.focus({ preventScroll: false });
    });
  }

  /** @param {Ways} ways */
  #drawWays({ rows, matching }) {
    const more = matching > rows.length ? [h("li", { class: "hint" }, `and in ${format.count(matching - rows.length)} more ways`)] : [];
    this.ways.replaceChildren(
      ...rows.map((row) =>
        h(
          "li",
          {},
          h("button", { type: "button", class: "link", onclick: () => this.#follow(row.id, true) }, row.text),
          h("span", { class: "hint" }, ` ${format.plural(row.count, "object")}, ${format.bytes(row.retained)} retained${row.unreachable ? ", unreachable" : ""}`),
        ),
      ),
      ...more,
    );
  }

  /**
   * Show an object; from the list of a class the trail starts again.
   *
   * @param {number} id
   * @param {boolean} anew
   */
  #follow(id, anew) {
    if (anew) this.#trail = [];
    else if (this.#object !== null) this.#trail.push(this.#object);
    this.#open(id);
  }

  /** @param {number | null} id */
  async #open(id) {
    this.#object = id;
    this.objects.select(id);
    this.detail.replaceChildren();
    this.#details.cancel();
    if (id === null) return;
    await this.#details.ask("snapshotObject", { number: this.#number, id }, (object) => this.#drawObject(object, id));
  }

  /**
   * @param {Details} object
   * @param {number} id
   */
  #drawObject(object, id) {
    const { steps } = object.path;
    const title = h("h3", { tabindex: "-1" }, `${object.name} ${format.objectId(object.id)}`);
    const back = h("button", { type: "button", onclick: () => this.#open(/** @type {number} */ (this.#trail.pop())) }, "Back");
    const more = (/** @type {number} */ shown, /** @type {number} */ count) => (count > shown ? h("p", { class: "hint" }, `and ${format.count(count - shown)} more`) : null);
    this.detail.replaceChildren(
      ...(this.#trail.length ? [back] : []),
      title,
      h("p", {}, [format.bytes(object.size), `${format.bytes(object.retained)} retained`].join(", "), object.file ? `, made at ${format.place(object.file, object.line)}` : ""),
      h("h4", {}, "Held by"),
      ...(steps.length > 1 ? [h("p", {}, h("code", { class: "held-as" }, object.heldAs))] : []),
      ...(object.unreachable ? [h("p", { class: "hint" }, "Only by a cycle: nothing outside refers to it.")] : []),
      ...(steps.length > 1
        ? [h("ol", { class: "path", "aria-label": "A shortest path from a root" }, ...this.#steps(object.path, id))]
        : object.unreachable
          ? []
          : [h("p", { class: "hint" }, "Nothing in the snapshot but the interpreter itself.")]),
      h("h4", {}, `Referred to by ${format.count(object.referrerCount)}`),
      h("ul", { class: "referrers" }, ...object.referrers.map((one) => this.#item(one, id))),
      ...[more(object.referrers.length, object.referrerCount)].filter(Boolean),
      h("h4", {}, `Refers to ${format.count(object.referenceCount)}`),
      h("ul", { class: "references" }, ...object.references.map((one) => this.#item(one, id))),
      ...[more(object.references.length, object.referenceCount)].filter(Boolean),
      ...(object.elsewhere ? [h("p", { class: "hint" }, `and to ${format.count(object.elsewhere)} that are not in the snapshot`)] : []),
    );
    title.focus();
  }

  /**
   * @param {Details["path"]} path
   * @param {number} current
   */
  #steps({ steps, omitted }, current) {
    const items = steps.map((step) => this.#item(step, current));
    if (!omitted) return items;
    const half = steps.length / 2;
    setAttribute(items[half], "value", half + omitted + 1); // its number in the list
    return [...items.slice(0, half), h("li", { class: "hint omitted" }, `… ${format.count(omitted)} more …`), ...items.slice(half)];
  }

  /**
   * @param {Item} object
   * @param {number} current
   */
  #item(object, current) {
    const text = `${object.name} ${format.objectId(object.id)}`;
    const about = [object.heldBy, format.bytes(object.size), format.place(object.file, object.line)].filter(Boolean).join(", ");
    return h(
      "li",
      {},
      object.id === current ? h("b", {}, text) : h("button", { type: "button", class: "link", onclick: () => this.#follow(object.id, false) }, text),
      h("span", { class: "hint" }, ` ${about}`),
    );
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

  /** @param {Summary} one */
  async #save(one) {
    const file = await ask("snapshotFile", { number: one.number });
    if (file !== null) save(file, `snapshot-${one.number}.rbkit`);
  }

  /** @param {Summary} one */
  async #remove(one) {
    await ask("removeSnapshot", { number: one.number });
    this.onchange?.();
  }
}

const EMPTY =
  "No snapshot yet. To find a leak, press Find what grows: it takes one, lets the program do its work for a while, " +
  "takes another, and shows what the second has more of.";

const UNREACHABLE = "of them, those that only a cycle refers to: the collector frees them, or the interpreter holds them";

const UNKNOWN_PLACES =
  "The place of creation is known for Python's functions, for Python objects created while tracemalloc was on " +
  "(python -X tracemalloc), and for Ruby objects created while the memory profile was on.";
