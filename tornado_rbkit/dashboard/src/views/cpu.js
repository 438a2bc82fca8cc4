// @ts-check
// The CPU view: a live flame graph, and the functions by self and total samples.

import { h, menu, save, setText } from "./widgets/dom.js";
import { Empty } from "./widgets/empty.js";
import { FlameGraph, legendColour } from "./widgets/flame.js";
import * as format from "./widgets/format.js";
import { Latest } from "./latest.js";
import { KINDS } from "../model/functions.js";
import { ask } from "./rpc.js";
import { Table } from "./widgets/table.js";

export class CpuView {
  element;
  refreshSeconds = 1;
  /** @type {(() => void) | undefined} Called when what the view shows was chosen anew. */
  onchange;
  #path = []; // functions on the path to the zoomed frame
  #era = 0; // counts the profiles shown; functions have other numbers in each
  #period = null; // ms between samples; null if a sample stands for no time that is known
  #wantedThread = ""; // by the address, until there is such a thread
  #samples = -1;
  #drawnFor = "";
  #function = null;
  #total = 0;
  #samplesOfFunction = 0;
  #matching = 0;
  #flame = new Latest();
  #functions = new Latest();
  #details = new Latest();

  /** `record` is a button that starts CPU profiling; `clocks` are the buttons that choose its clock. */
  constructor({ record, clocks }) {
    this.thread = h("select", { "aria-label": "Thread", onchange: () => this.#chooseThread() });
    this.search = h("input", { type: "search", placeholder: "function or file", "aria-label": "Search functions", oninput: () => this.#redraw() });
    this.reset = h("button", { type: "button", hidden: true, onclick: () => this.#unzoom() }, "Whole graph");
    this.undo = h("button", { type: "button", hidden: true, title: "show the samples before Clear again, without those since", onclick: () => this.#undoClear() }, "Undo Clear");
    this.matched = h("span", { class: "hint", role: "status" });
    this.idle = h("input", { type: "checkbox", onchange: () => this.#redraw() });
    this.graph = new FlameGraph({
      describe: (node, parent) => this.#describe(node, parent),
      choose: (path) => this.#zoom(path),
      back: () => this.#unzoom(),
    });
    this.summary = h("span", { class: "hint" });
    this.note = h("p", { class: "note", role: "status" });
    const share = (key) => (row) => `${this.#cell(row[key])}  ${format.percent(row[key], this.#total)}`;
    const exact = (key) => (row) => format.plural(row[key], "sample");
    const bar = (key) => (row) => (this.#total ? row[key] / this.#total : 0);
    this.table = new Table({
      caption: "Functions",
      key: (row) => row.index,
      sort: "self",
      onsort: () => this.#redraw(),
      onselect: (row) => this.#choose(row.index),
      columns: [
        { key: "label", label: "function", text: (row) => row.label },
        { key: "self", label: "self", title: "time in the function itself", number: true, text: share("self"), bar: bar("self"), hint: exact("self") },
        { key: "total", label: "total", title: "time in it and what it called", number: true, text: share("total"), bar: bar("total"), hint: exact("total") },
        { key: "file", label: "file", text: (row) => format.place(row.file, row.line), hint: (row) => row.file },
      ],
    });
    this.name = h("h3", { tabindex: "-1" });
    this.place = h("p", { class: "hint" });
    this.lists = [
      this.#list("callers", "Called by", "function"),
      this.#list("callees", "Calls", "function"),
      this.#list("lines", "Its own time by line", "line"),
    ];
    this.detail = h("div", { class: "detail", hidden: true }, this.name, this.place, ...this.lists.flatMap(({ elements }) => elements));
    const exporting = (kind, label, title) => h("button", { type: "button", title, onclick: () => this.#export(kind) }, label);
    const controls = h(
      "div",
      { class: "controls" },
      h("label", {}, "thread ", this.thread),
      h("label", { title: "also the samples of threads that wait" }, this.idle, " waiting threads"),
      this.search,
      h("button", { type: "button", title: "begin a new profile; it can be undone", onclick: () => this.#clear() }, "Clear"),
      menu(
        "Export",
        "",
        exporting("speedscope", "Export speedscope", "a file for https://www.speedscope.app"),
        exporting("collapsed", "Export collapsed stacks", "a file for flamegraph.pl and similar tools"),
      ),
      this.reset, // what comes and goes is last, so that no button moves under the pointer
      this.matched,
      this.summary,
    );
    const content = h(
      "div",
      {},
      this.note,
      this.graph.element,
      h("p", { class: "hint legend" }, ...Object.entries(KINDS).map(([kind, name]) => legend(name, legendColour(kind))), HINT),
      h("div", { class: "columns" }, this.table.element, this.detail),
    );
    const about = "It shows where the threads spend their time, as a flame graph and by function.";
    this.empty = new Empty({ what: "CPU profile", recorded: "cpu_profiling_enabled", about, button: record }, controls, content);
    const clock = h("div", { class: "choice", role: "group", "aria-label": "Clock" }, ...clocks);
    this.element = h("section", { "aria-label": "CPU" }, h("div", { class: "bar" }, clock, controls, this.undo), this.empty.element, content);
  }

  /** What is chosen in the view, for the address. */
  get choices() {
    return { thread: this.#thread ?? "", search: this.search.value, waiting: this.idle.checked ? "1" : "", sort: this.table.order };
  }

  restore(choices) {
    this.#wantedThread = choices.get("thread") ?? "";
    this.search.value = choices.get("search") ?? "";
    this.idle.checked = choices.has("waiting");
    this.table.order = choices.get("sort") ?? "";
  }

  /** Reset the view for another session or process. */
  forget() {
    for (const one of [this.#flame, this.#functions, this.#details]) one.cancel();
    this.#era++;
    this.#path = [];
    this.#select(null);
    this.detail.hidden = true;
  }

  async update(header, process) {
    if (process !== this.process) this.forget();
    this.process = process;
    const thread = this.#thread;
    const [idle, search] = [this.idle.checked, this.search.value];
    const drawnFor = JSON.stringify([process, thread, this.#path, idle]);
    await this.#flame.ask(
      "flame",
      { process, thread, path: this.#path, idle, search },
      async (data) => {
        this.empty.update(header, !data.samples);
        this.undo.hidden = !data.cleared;
        const another = drawnFor !== this.#drawnFor;
        if (data.samples === this.#samples && !another) return;
        this.#samples = data.samples;
        this.#period = header.facts?.clock_type === "wall" ? data.period : null;
        this.#drawnFor = drawnFor;
        this.#draw(data, another);
        await this.#drawTable(thread);
      },
      (data) => this.#tell(data),
    );
  }

  #tell({ samples, omitted, first, last, missing, period }) {
    const seconds = (last - first) / 1000;
    const time = seconds > 0 ? ` in ${format.duration(seconds)}` : "";
    const rate = this.#period === null ? "" : `, ${format.count(1000 / period)}/s of a thread`;
    setText(this.summary, samples ? `${format.count(samples)} samples${time}${rate}` : "");
    const notes = [];
    if (samples && !this.#total) notes.push("All threads wait: check “waiting threads” to see where.");
    else if (samples && !this.#matching) notes.push(`No function has “${this.search.value}” in its name or file.`);
    if (missing) notes.push(`${format.count(missing)} messages are missing: there may have been more samples.`);
    if (omitted) notes.push(`${format.count(omitted)} samples are left out: they have more functions and stacks than this page keeps.`);
    setText(this.note, notes.join(" "));
  }

  get #thread() {
    return this.thread.value || this.#wantedThread || null;
  }

  #chooseThread() {
    this.#wantedThread = "";
    this.#redraw();
  }

  #drawThreads(threads, samples) {
    const options = [["", "all"], ...threads.map(({ id, samples: own }) => [id, `${id} (${format.percent(own, samples)})`])];
    const chosen = this.#thread ?? "";
    options.forEach(([value, text], i) => {
      const option = this.thread.options[i] ?? this.thread.appendChild(h("option"));
      option.value = value;
      setText(option, text);
    });
    while (this.thread.options.length > options.length) this.thread.lastChild.remove();
    const isThere = options.some(([value]) => value === chosen);
    this.thread.value = isThere ? chosen : "";
    if (isThere) this.#wantedThread = "";
  }

  #draw({ frames, zoom, total, threads, matched }, another) {
    this.#total = total;
    this.#drawThreads(threads, threads.reduce((sum, { samples }) => sum + samples, 0));
    setText(this.matched, this.search.value ? `matches ${format.percent(matched, frames[zoom].value)}` : "");
    this.reset.hidden = !zoom;
    const wanted = this.search.value.toLowerCase();
    const found = ({ fn, name, file }) => wanted !== "" && fn !== undefined && `${name} ${file}`.toLowerCase().includes(wanted);
    this.graph.draw(frames, zoom, found, another);
  }

  async #drawTable(thread) {
    const { sort, descending } = this.table;
    const query = { process: this.process, thread, filter: this.search.value, sort, descending, limit: this.table.limit, idle: this.idle.checked };
    await this.#functions.ask("functions", query, async (data) => {
      this.#matching = data.matching;
      await this.table.update(data.rows, data.matching);
      if (this.#function !== null) await this.#drawDetails();
    });
  }

  /** Return the lines of a frame's tooltip. */
  #describe({ file, line, self, value, cut }, parent) {
    const share = (samples) => `${this.#time(samples)}, ${format.percent(samples, this.#total)}`;
    const ofParent = parent === null ? "" : `; ${format.percent(value, parent.value)} of its caller`;
    return [format.place(file, line), cut ? "" : `self ${share(self)}`, `total ${share(value)} of all${ofParent}`].filter(Boolean);
  }

  /** Return how long samples took; only their number, if the time between them is not known. */
  #time(samples) {
    return this.#period === null ? format.plural(samples, "sample") : format.span(samples * this.#period);
  }

  /** Return the same for a cell of a table, in which the unit is clear. */
  #cell(samples) {
    return this.#period === null ? format.count(samples) : this.#time(samples);
  }

  /** Zoom in, as a step that the browser's Back button takes back. */
  #zoom(path) {
    history.pushState({ era: this.#era, path }, "");
    this.#path = path;
    if (path.length) this.#choose(path.at(-1));
    this.#redraw();
  }

  #unzoom() {
    if (!this.#path.length) return;
    this.#zoom([]);
  }

  /** Show what a step of the browser's history showed. */
  back(state) {
    this.#path = state?.era === this.#era ? state.path : [];
    this.#redraw();
  }

  /** Draw again although no sample arrived. */
  #redraw() {
    this.#samples = -1;
    this.table.rearrange();
    this.onchange?.();
  }

  #select(index) {
    this.#function = index;
    this.table.select(index);
    this.graph.select(index);
  }

  async #choose(index) {
    this.#select(index);
    for (const { table } of this.lists) table.rearrange();
    const followed = this.detail.contains(document.activeElement);
    await this.#drawDetails();
    if (followed) this.name.focus(); // the clicked element was removed
  }

  async #drawDetails() {
    const query = { process: this.process, index: this.#function, thread: this.#thread, idle: this.idle.checked };
    await this.#details.ask("functionDetails", query, (data) => this.#showDetails(data));
  }

  async #showDetails(data) {
    const share = (samples) => `${this.#time(samples)}, ${format.percent(samples, this.#total)}`;
    this.detail.hidden = false;
    setText(this.name, data.label);
    setText(this.place, [format.place(data.file, data.line), `self ${share(data.self)}`, `total ${share(data.samples)}`].filter(Boolean).join("; "));
    this.place.title = data.file;
    this.#samplesOfFunction = data.samples;
    for (const { key, table, none } of this.lists) {
      table.element.hidden = !data[key].length;
      none.hidden = data[key].length > 0;
      await table.update(data[key]);
    }
  }

  /** Return the elements of a list of the current function; `key` names the list in its details. */
  #list(key, title, label) {
    const table = new Table({
      caption: title,
      key: (row) => row.index,
      onselect: key === "lines" ? null : (row) => this.#choose(row.index),
      columns: [
        { label, text: (row) => row.label },
        {
          label: "time",
          title: "and its share of the total of the function above",
          number: true,
          text: (row) => `${this.#cell(row.samples)}  ${format.percent(row.samples, this.#samplesOfFunction)}`,
          hint: (row) => format.plural(row.samples, "sample"),
          bar: (row) => row.samples / this.#samplesOfFunction,
        },
      ],
    });
    const none = h("p", { class: "hint" }, "none");
    return { key, table, none, elements: [h("h4", {}, title), none, table.element] };
  }

  async #clear() {
    await ask("clearCpu", { process: this.process });
    this.forget();
    this.#redraw();
  }

  async #undoClear() {
    await ask("undoClearCpu", { process: this.process });
    this.forget();
    this.#redraw();
  }

  async #export(kind) {
    const name = `cpu-${this.process}`;
    try {
      const text = await ask("exportCpu", { process: this.process, format: kind, name });
      save(text, kind === "speedscope" ? `${name}.speedscope.json` : `${name}.collapsed.txt`);
    } catch (error) {
      setText(this.note, `The export failed: ${error instanceof Error ? error.message : error}.`); // the text would be too long
    }
  }
}

function legend(name, colour) {
  const item = h("span", {}, name);
  item.style.setProperty("--kind", colour); // not an attribute, which the Content-Security-Policy refuses
  return item;
}

const HINT = "Click zooms in, Escape or Back out.";
