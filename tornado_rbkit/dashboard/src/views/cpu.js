// Where the time goes: a flame graph that grows, and the functions by their own and their whole time.

import flamegraph from "d3-flame-graph/src/flamegraph.js";
import { select } from "d3-selection";
import { h, save, setAttribute, setText } from "../dom.js";
import * as format from "../format.js";
import { ask } from "../rpc.js";
import { Table } from "../table.js";
import { off } from "./memory.js";

const SHOWN = 100;
const CELL_HEIGHT = 18; // px

export class CpuView {
  element;
  refreshSeconds = 2;
  #graph = null;
  #zoomed = false;
  #samples = -1;
  #drawnFor = "";
  #function = null;
  #total = 0;
  #matching = 0;

  constructor() {
    this.thread = h("select", { "aria-label": "Thread", onchange: () => this.#redraw() });
    this.search = h("input", { type: "search", placeholder: "function or file", "aria-label": "Search functions", oninput: () => this.#find() });
    this.reset = h("button", { type: "button", hidden: true, onclick: () => this.#unzoom() }, "Whole graph");
    this.hovered = h("p", { class: "hint hovered" }, HINT);
    this.plot = h("div");
    this.box = h("div", { class: "flame", role: "img", "aria-label": "Flame graph; the table below has the same in numbers" }, this.plot);
    this.summary = h("span", { class: "hint" });
    this.note = h("p", { class: "note", role: "status" });
    const share = (key) => (row) => `${format.count(row[key])}  ${format.percent(row[key], this.#total)}`;
    const bar = (key) => (row) => (this.#total ? row[key] / this.#total : 0);
    this.table = new Table({
      caption: "Functions",
      key: (row) => row.index,
      sort: "self",
      onsort: () => this.#redraw(),
      onselect: (row) => this.#choose(row.index),
      columns: [
        { key: "label", label: "function", text: (row) => row.label },
        { key: "self", label: "self", title: "samples in the function itself", number: true, text: share("self"), bar: bar("self") },
        { key: "total", label: "total", title: "samples in it and what it called", number: true, text: share("total"), bar: bar("total") },
        { key: "file", label: "file", text: (row) => format.place(row.file, row.line), hint: (row) => row.file },
      ],
    });
    this.detail = h("div", { class: "detail" });
    const exporting = (kind, label, title) => h("button", { type: "button", title, onclick: () => this.#export(kind) }, label);
    this.element = h(
      "section",
      { "aria-label": "CPU" },
      h(
        "div",
        { class: "bar" },
        h("label", {}, "thread ", this.thread),
        this.search,
        this.reset,
        h("button", { type: "button", title: "forget the samples so far", onclick: () => this.#clear() }, "Clear"),
        exporting("speedscope", "Export speedscope", "a file for https://www.speedscope.app"),
        exporting("collapsed", "Export collapsed stacks", "a file for flamegraph.pl and its kin"),
        this.summary,
      ),
      this.note,
      this.hovered,
      this.box,
      h("div", { class: "columns" }, this.table.element, this.detail),
    );
    new ResizeObserver(() => this.#fit()).observe(this.plot);
  }

  async update(header, process) {
    this.process = process;
    const thread = this.#thread;
    const data = await ask("flame", { process, thread });
    this.#drawThreads(data.threads, data.samples);
    const drawnFor = `${process} ${thread}`;
    const another = drawnFor !== this.#drawnFor;
    this.#total = data.total;
    if (another || data.samples < this.#samples) this.#unzoom();
    if (data.samples !== this.#samples || another) {
      this.#samples = data.samples;
      this.#drawnFor = drawnFor;
      this.#draw(data.tree);
      await this.#drawTable(thread);
    }
    const seconds = (data.last - data.first) / 1000;
    const rate = seconds > 0 ? ` in ${format.duration(seconds)}` : "";
    setText(this.summary, data.samples ? `${format.count(data.samples)} samples${rate}` : "");
    const notes = [];
    if (!data.samples) notes.push(off(header, "CPU", "start_cpu_profiling"));
    else if (!this.#matching) notes.push(`No function has “${this.search.value}” in its name or file.`);
    if (data.missing) notes.push(`${format.count(data.missing)} messages are missing: there may have been more samples.`);
    setText(this.note, notes.join(" "));
  }

  get #thread() {
    return this.thread.value === "" ? null : Number(this.thread.value);
  }

  #drawThreads(threads, samples) {
    const options = [["", "all"], ...threads.map(({ id, samples: own }) => [String(id), `${id} (${format.percent(own, samples)})`])];
    const chosen = this.thread.value;
    options.forEach(([value, text], i) => {
      const option = this.thread.options[i] ?? this.thread.appendChild(h("option"));
      option.value = value;
      setText(option, text);
    });
    while (this.thread.options.length > options.length) this.thread.lastChild.remove();
    this.thread.value = options.some(([value]) => value === chosen) ? chosen : "";
  }

  #draw(tree) {
    this.box.hidden = !tree.value;
    if (this.#zoomed || !tree.value) return; // what is looked at stays as it is
    const width = this.plot.clientWidth;
    if (!width) return;
    if (this.#graph === null) {
      this.#graph = flamegraph()
        .width(width)
        .cellHeight(CELL_HEIGHT)
        .minFrameSize(1)
        .transitionDuration(0)
        .inverted(true)
        .sort((a, b) => (a.data.name < b.data.name ? -1 : 1))
        .setLabelHandler((node) => `${node.data.name}, ${format.percent(node.value, tree.value)}`)
        .setColorMapper((node, original) => (node.highlight ? original : colourOf(node.data)))
        .setSearchMatch(({ data }, text) => data.fn !== undefined && `${data.name} ${data.file}`.toLowerCase().includes(text.toLowerCase()))
        .onHover((node) => this.#hover(node))
        .onClick((node) => this.#zoom(node));
      select(this.plot).datum(tree).call(this.#graph);
    } else {
      this.#graph.setLabelHandler((node) => `${node.data.name}, ${format.percent(node.value, tree.value)}`);
      this.#graph.update(tree);
    }
    if (this.search.value) this.#graph.search(this.search.value);
  }

  async #drawTable(thread) {
    const { sort, descending } = this.table;
    const data = await ask("functions", { process: this.process, thread, filter: this.search.value, sort, descending, limit: SHOWN });
    this.#matching = data.matching;
    this.table.update(data.rows);
    if (this.#function !== null && !this.detail.contains(document.activeElement)) await this.#drawDetails();
  }

  #hover(node) {
    const { name, file, line } = node.data;
    setText(this.hovered, `${name}  ${format.place(file, line)}  ${format.count(node.value)} samples, ${format.percent(node.value, this.#total)}`);
  }

  #zoom(node) {
    this.#zoomed = Boolean(node.parent);
    this.reset.hidden = !this.#zoomed;
    if (node.data.fn !== undefined) this.#choose(node.data.fn);
  }

  #unzoom() {
    if (!this.#zoomed) return;
    this.#zoomed = false;
    this.reset.hidden = true;
    this.#graph.resetZoom();
    this.#redraw();
  }

  #find() {
    if (this.search.value) this.#graph?.search(this.search.value);
    else this.#graph?.clear();
    this.#redraw();
  }

  /** Draw anew though no sample came. */
  #redraw() {
    this.#samples = -1;
    this.table.rearrange();
    this.onchange?.();
  }

  async #choose(index) {
    this.#function = index;
    this.table.select(index);
    const followed = this.detail.contains(document.activeElement);
    await this.#drawDetails();
    if (followed) this.detail.querySelector("h3").focus(); // what was clicked is gone
  }

  async #drawDetails() {
    const data = await ask("functionDetails", { process: this.process, index: this.#function, thread: this.#thread });
    const item = ({ index, label, samples }) =>
      h(
        "li",
        {},
        index === null ? label : h("button", { type: "button", class: "link", onclick: () => this.#choose(index) }, label),
        h("span", { class: "hint" }, ` ${format.count(samples)} samples`),
      );
    const list = (title, items) => [h("h4", {}, title), items.length ? h("ul", {}, ...items.map(item)) : h("p", { class: "hint" }, "none")];
    this.detail.replaceChildren(
      h("h3", { tabindex: "-1" }, data.label),
      h("p", { class: "hint", title: data.file }, format.place(data.file, data.line)),
      ...list("Called by", data.callers),
      ...list("Calls", data.callees),
      h("h4", {}, "Its own samples by line"),
      data.lines.length
        ? h("ul", {}, ...data.lines.map(([line, samples]) => h("li", {}, `line ${line}: ${format.count(samples)}`)))
        : h("p", { class: "hint" }, "none"),
    );
  }

  async #clear() {
    await ask("clearCpu", { process: this.process });
    this.#function = null;
    this.detail.replaceChildren();
    this.#unzoom();
    this.#redraw();
  }

  async #export(kind) {
    const name = `cpu-${this.process}`;
    const text = await ask("exportCpu", { process: this.process, format: kind, name });
    save(text, kind === "speedscope" ? `${name}.speedscope.json` : `${name}.collapsed.txt`);
  }

  #fit() {
    const width = this.plot.clientWidth;
    if (this.#graph === null || !width || width === this.#graph.width()) return;
    this.#graph.width(width);
    this.#graph.update();
  }
}

/** Return a warm colour that black can be read on, the same for a function each time. */
function colourOf({ name, fn }) {
  let hash = 0;
  if (fn !== undefined) for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 4096;
  return `hsl(${10 + (hash % 45)} 85% ${66 + (hash % 13)}%)`;
}

const HINT = "Point at a frame to see its name, click to zoom into it.";
