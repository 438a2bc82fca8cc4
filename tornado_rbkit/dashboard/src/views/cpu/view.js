// The CPU view: the activity of the threads by time, a live flame graph, and the functions by self and total time.

import { h, menu, save, setText } from "../widgets/dom.js";
import { Empty } from "../widgets/empty.js";
import * as format from "../widgets/format.js";
import { Strip } from "../widgets/strip.js";
import { Latest } from "../latest.js";
import { ask } from "../rpc.js";
import { FunctionDetails } from "./details.js";
import { functionTables } from "./functions.js";
import { Graphs, ORDERS } from "./graphs.js";
import { TimeChoice } from "./range.js";
import { ThreadChoice } from "./threadchoice.js";

const GROUPS = { "": "together", thread: "by thread", task: "by task" };
const COMPARISONS = { "": "nothing", before: "the time before", range: "another range" };

export class CpuView {
  element;
  refreshSeconds = 1;
  /** @type {(() => void) | undefined} Called when what the view shows was chosen anew. */
  onchange;
  #path = []; // functions on the path to the zoomed frame
  #profile = 0; // the number of the profile shown
  #period = null; // ms of a sample; null if a sample stands for no time that is known
  #time = new TimeChoice();
  #samples = -1;
  #drawnFor = "";
  #function = null;
  #wantedFunction = ""; // by the address, until there is one
  #total = 0; // samples looked at
  #matching = 0; // functions that the search matches
  #overview = new Latest();
  #functions = new Latest();
  #details = new Latest();

  /** `record` is a button that starts CPU profiling; `clocks` are the buttons that choose its clock. */
  constructor({ record, clocks }) {
    const redraw = () => this.#redraw();
    this.thread = new ThreadChoice({ onchange: redraw });
    this.group = choice("Group", GROUPS, () => this.#leave());
    this.order = choice("Graph", ORDERS, () => this.#leave());
    this.search = h("input", { type: "search", placeholder: "function or file", "aria-label": "Search functions", oninput: redraw });
    this.reset = h("button", { type: "button", hidden: true, onclick: () => this.#unzoom() }, "Whole graph");
    this.undo = h("button", { type: "button", hidden: true, title: "show the samples before Clear again, without those since", onclick: () => this.#undoClear() }, "Undo Clear");
    this.matched = h("span", { class: "hint", role: "status" });
    this.idle = h("input", { type: "checkbox", onchange: redraw });
    this.strip = new Strip((range) => this.#chooseTime(range));
    this.range = h("span", { role: "status" });
    this.whole = h("button", { type: "button", hidden: true, onclick: () => this.#chooseTime(null) }, "Whole time");
    this.compare = choice("Compare with", COMPARISONS, () => this.#compareWith());
    this.summary = h("span", { class: "hint" });
    this.note = h("p", { class: "note", role: "status" });
    const time = (samples) => this.#timeOf(samples);
    const cell = (samples) => this.#cell(samples);
    this.graphs = new Graphs({ time, choose: (path) => this.#zoom(path), back: () => this.#unzoom() });
    this.tables = functionTables({ cell, whole: () => this.#total, onsort: redraw, onselect: (row) => this.#choose(row.index) });
    this.detail = new FunctionDetails({ time, cell, choose: (index) => this.#choose(index) });
    const exporting = (kind, label, title) => h("button", { type: "button", title, onclick: () => this.#export(kind) }, label);
    const controls = h(
      "div",
      { class: "controls" },
      h("label", {}, "thread ", this.thread.element),
      h("label", { title: "also the samples of threads that wait, and asyncio tasks that are suspended" }, this.idle, " include idle"),
      h("label", {}, "graph ", this.order),
      this.group,
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
      h("div", { class: "times" }, this.strip.element, h("div", { class: "bar" }, this.range, this.whole, h("label", {}, "compare with ", this.compare))),
      this.graphs.element,
      ...this.graphs.legends,
      h("div", { class: "columns" }, h("div", {}, this.tables.plain.element, this.tables.compared.element), this.detail.element),
    );
    const about = "It shows where the threads spend their time, as a flame graph and by function.";
    this.empty = new Empty({ what: "CPU profile", recorded: "cpu_profiling_enabled", about, button: record }, controls, content);
    const clock = h("div", { class: "choice", role: "group", "aria-label": "Clock" }, ...clocks);
    this.element = h("section", { "aria-label": "CPU" }, h("div", { class: "bar" }, clock, controls, this.undo), this.empty.element, content);
  }

  /** What is chosen in the view, for the address. */
  get choices() {
    const { value: order } = this.order;
    return {
      ...{ thread: this.thread.value, search: this.search.value, idle: this.idle.checked ? "1" : "" },
      ...{ graph: order === "calls" ? "" : order, group: this.group.value, function: this.#wantedFunction },
      ...{ ...this.#time.texts, sort: this.#table.order },
    };
  }

  restore(choices) {
    const of = (name) => choices.get(name) ?? "";
    this.thread.value = of("thread");
    this.search.value = of("search");
    this.idle.checked = choices.has("idle");
    this.order.value = of("graph") in ORDERS ? of("graph") : "calls";
    this.group.value = of("group") in GROUPS ? of("group") : "";
    this.#wantedFunction = of("function");
    this.#time.restore({ range: of("range"), compare: of("compare") });
    this.#table.order = of("sort");
  }

  /** Reset the view for another session or process. */
  forget() {
    for (const one of [this.#overview, this.graphs, this.#functions, this.#details]) one.cancel();
    this.#path = [];
    this.#function = null;
    this.#mark();
    this.detail.element.hidden = true;
  }

  async update(header, process) {
    if (process !== this.process) this.forget();
    this.process = process;
    await this.#overview.ask("cpuOverview", { process, idle: this.idle.checked }, async (data) => {
      if (data.profile !== this.#profile) this.forget();
      this.#profile = data.profile;
      this.empty.update(header, !data.samples);
      this.undo.hidden = !data.canUndoClear;
      const interval = header.facts?.cpu_interval;
      this.#period = header.facts?.clock_type === "wall" ? data.period : interval ? 1000 * interval : null;
      this.thread.draw(data);
      const [, , byTask] = this.group.options;
      byTask.disabled = !this.thread.hasTasks;
      const isBlind = byTask.disabled && (header.facts?.cpu_engine ?? "in-process") !== "in-process";
      setText(byTask, isBlind ? `${GROUPS.task} (needs --cpu-engine in-process)` : GROUPS.task);
      this.#drawTime(data.strip);
      this.#summarize(data);
      const drawnFor = JSON.stringify([process, data.profile, this.#query, this.#path, this.order.value, this.group.value, this.#function]);
      const another = drawnFor !== this.#drawnFor;
      if (data.samples !== this.#samples || another) {
        this.#samples = data.samples;
        this.#drawnFor = drawnFor;
        await this.#drawGraph(another);
        await this.#drawTable();
      }
      this.#tell(data);
    });
  }

  /** What is looked at, for the worker. */
  get #query() {
    return { ...this.thread.query, idle: this.idle.checked, range: this.#time.range, compare: this.#time.comparedRange };
  }

  get #table() {
    return this.#time.comparedRange ? this.tables.compared : this.tables.plain;
  }

  /** Say how long was sampled, and at which rate. */
  #summarize({ samples, elapsed, period }) {
    const isTimed = this.#period !== null;
    const rate = isTimed && period ? `, ${format.count(1000 / period)}/s of a thread` : "";
    setText(this.summary, samples ? `${elapsed < 60_000 ? format.span(elapsed) : format.duration(elapsed / 1000)}${rate}` : "");
    this.summary.title = `${format.plural(samples, "sample")}${isTimed ? `, each of ${format.span(this.#period)}` : ""}`;
  }

  #tell({ samples, merged, omitted, missing, strip }) {
    const notes = [];
    if (samples && !this.#total && !this.#time.range) notes.push("All threads wait: check “include idle” to see where.");
    else if (samples && !this.#total) notes.push("No thread runs in this range.");
    else if (samples && !this.#matching) notes.push(`No function has “${this.search.value}” in its name or file.`);
    if (this.order.value === "sandwich" && this.#function === null) notes.push("Choose a function in the table: its callers are drawn above it, and what it calls below.");
    if (this.order.value === "time" && this.graphs.shown.thread) notes.push(`The graph is of one thread: ${this.graphs.shown.thread}.`);
    if (this.#time.compare === "before" && !this.#time.comparedRange) notes.push("Choose a range that begins later, to compare it with the time before.");
    if (merged) notes.push(`Samples of the first ${format.span(strip.from)} are merged: they count in the whole time, but in no range.`);
    if (missing) notes.push(`${format.count(missing)} messages are missing: there may have been more samples.`);
    if (omitted) notes.push(`${format.count(omitted)} samples are left out: they have more functions and stacks than this page keeps.`);
    setText(this.note, notes.join(" "));
  }

  /** Draw another graph: what was zoomed is not in it. */
  #leave() {
    this.#path = [];
    this.#redraw();
  }

  #drawTime(strip) {
    const { range, isAwaited } = this.#time;
    this.strip.draw(strip, range, this.#time.comparedRange);
    this.compare.value = this.#time.comparing;
    this.whole.hidden = range === null;
    const span = (one) => `${format.span(one[0])} to ${format.span(one[1])}`;
    const compared = this.#time.comparedRange ? `, compared with ${span(this.#time.comparedRange)}` : "";
    setText(this.range, isAwaited ? "Drag over the range to compare with." : range || compared ? `${range ? span(range) : "whole time"}${compared}` : "Drag over a time to look at it.");
  }

  #chooseTime(range) {
    this.#time.choose(range);
    this.#redraw();
  }

  #compareWith() {
    this.#time.compareWith(this.compare.value);
    this.#redraw();
  }

  async #drawGraph(another) {
    if (this.#wantedFunction && this.#function === null) this.#function = await this.#find(this.#wantedFunction);
    const chosen = { order: this.order.value, group: this.group.value, path: this.#path, index: this.#function };
    await this.graphs.draw({ process: this.process, ...this.#query, search: this.search.value, ...chosen }, another);
    const { matched, zoom } = this.graphs.shown;
    setText(this.matched, matched && `matches ${matched}`);
    this.reset.hidden = !zoom;
    this.#mark();
  }

  /** Return the number of the function with a name, null if there is none yet. */
  async #find(name) {
    const index = await ask("findFunction", { process: this.process, name });
    return index < 0 ? null : index;
  }

  async #drawTable() {
    const table = this.#table;
    for (const one of Object.values(this.tables)) one.element.hidden = one !== table;
    const { sort, descending, limit } = table;
    const query = { process: this.process, ...this.#query, filter: this.search.value, sort, descending, limit };
    await this.#functions.ask("functions", query, async (data) => {
      this.#total = data.samples;
      this.#matching = data.matching;
      await table.update(data.rows, data.matching);
      if (this.#function !== null) await this.#drawDetails();
    });
  }

  /** Return how long samples took; only their number, if the time between them is not known. */
  #timeOf(samples) {
    return this.#period === null ? format.plural(samples, "sample") : format.span(samples * this.#period);
  }

  /** Return the same for a cell of a table, in which the unit is clear. */
  #cell(samples) {
    return this.#period === null ? format.count(samples) : this.#timeOf(samples);
  }

  /** Zoom in, as a step that the browser's Back button takes back; a sandwich is made of the frame's function. */
  #zoom(path) {
    const last = path.at(-1);
    if (this.order.value === "sandwich" || this.order.value === "time") {
      if (typeof last === "number") this.#choose(last);
      return;
    }
    history.pushState({ profile: this.#profile, path }, "");
    this.#path = path;
    if (typeof last === "number") this.#choose(last);
    this.#redraw();
  }

  #unzoom() {
    if (!this.#path.length) return;
    this.#zoom([]);
  }

  /** Show what a step of the browser's history showed. */
  back(state) {
    this.#path = state?.profile === this.#profile ? state.path : [];
    this.#redraw();
  }

  /** Draw again although no sample arrived. */
  #redraw() {
    this.#samples = -1;
    this.#table.rearrange();
    this.onchange?.();
  }

  /** Mark the row and the frames of the chosen function. */
  #mark() {
    for (const one of [...Object.values(this.tables), this.graphs]) one.select(this.#function);
  }

  async #choose(index) {
    this.#function = index;
    this.#mark();
    this.detail.rearrange();
    const { keepFocus } = this.detail;
    if (this.order.value === "sandwich") this.#redraw();
    await this.#drawDetails();
    keepFocus();
  }

  async #drawDetails() {
    const query = { process: this.process, index: this.#function, ...this.#query };
    await this.#details.ask("functionDetails", query, async (data) => {
      if (this.#wantedFunction !== data.name) {
        this.#wantedFunction = data.name;
        this.onchange?.();
      }
      await this.detail.show(data, this.#total);
    });
  }

  async #clear() {
    await ask("clearCpu", { process: this.process });
    this.#begin();
  }

  async #undoClear() {
    await ask("undoClearCpu", { process: this.process });
    this.#begin();
  }

  /** Show another profile, of another time. */
  #begin() {
    this.#time = new TimeChoice();
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

/** Return a menu of texts by value. */
function choice(label, texts, onchange) {
  return h("select", { "aria-label": label, onchange }, ...Object.entries(texts).map(([value, text]) => h("option", { value }, text)));
}
