// The memory view: memory size, objects and the collector over time.

import { Chart } from "./widgets/chart.js";
import { h, setAttribute, setText } from "./widgets/dom.js";
import { Empty } from "./widgets/empty.js";
import * as format from "./widgets/format.js";
import { Latest } from "./latest.js";
import { TimeRange } from "./widgets/range.js";
import { Table } from "./widgets/table.js";

export class MemoryView {
  element;
  refreshSeconds = 1;
  /** @type {(() => void) | undefined} Called when what the view shows was chosen anew. */
  onchange;
  #range = new TimeRange({ onchange: () => this.onchange?.() });
  #tiles = new Map();
  #memory = new Latest();

  /** `record` is a button that starts the memory profile. */
  constructor({ record }) {
    const { zoom } = this.#range;
    this.size = new Chart({
      title: "Memory",
      value: format.bytes,
      steps: Array.from({ length: 50 }, (_, i) => 2 ** i),
      series: [
        { label: RUBY.heap, colour: "c1" },
        { label: RUBY.memsize, colour: "c2" },
      ],
      ...zoom,
    });
    this.live = new Chart({ title: "Live", value: format.count, series: [{ label: RUBY.live, colour: "c3" }], ...zoom });
    this.rates = new Chart({
      title: "Objects allocated and freed",
      value: (value, digits) => `${format.count(value, digits)}/s`,
      series: [
        { label: "allocated", colour: "c4" },
        { label: "freed", colour: "c5" },
      ],
      ...zoom,
    });
    this.gc = new Chart({
      title: "Garbage collection: share of the time",
      value: (value, digits = value < 10 ? 1 : 0) => `${value.toFixed(digits)} %`,
      series: [{ label: "share of time", colour: "c2" }],
      ...zoom,
    });
    this.pauses = new Chart({
      title: "Garbage collection: length of each run",
      value: format.milliseconds,
      series: [{ label: "pause", colour: "c1", draw: "bars" }],
      ...zoom,
    });
    this.figures = new Table({
      caption: "All figures of the collector",
      columns: [
        { label: "figure", text: ([name]) => name },
        { label: "value", number: true, text: ([, value]) => (typeof value === "number" ? format.count(value) : value || "–") },
      ],
      key: ([name]) => name,
    });
    this.fits = h("input", { type: "checkbox", onchange: () => this.onchange?.() });
    this.#range.element.append(
      h("label", { title: "the value axes begin at the smallest value in view instead of at 0" }, this.fits, " fit the values"),
      h("span", { class: "hint" }, "Drag in a chart to zoom, double-click to go back."),
    );
    this.note = h("p", { class: "note", role: "status" });
    const content = h(
      "div",
      {},
      h("div", { class: "tiles" }, ...["heap", "memsize", "live", "allocated", "freed", "GC runs", "longest GC", "GC share"].map((name) => this.#tile(name))),
      this.#range.element,
      this.note,
      h("div", { class: "charts" }, ...[this.size, this.live, this.rates, this.gc, this.pauses].map((chart) => chart.element)),
      h("details", {}, h("summary", {}, "All figures of the collector"), this.figures.element),
    );
    const about = "It shows the size of the heap, the objects allocated and freed, and each run of the garbage collector.";
    this.empty = new Empty({ what: "memory profile", recorded: "object_trace_enabled", about, button: record }, content);
    this.element = h("section", { "aria-label": "Memory" }, this.empty.element, content);
  }

  /** What is chosen in the view, for the address. */
  get choices() {
    return { ...this.#range.choices, fit: this.fits.checked ? "1" : "" };
  }

  restore(choices) {
    this.#range.restore(choices);
    this.fits.checked = choices.has("fit");
  }

  /** Reset the view for another session. */
  forget() {
    this.#memory.cancel();
    this.#range.forget();
  }

  /** Request the data in view and draw it. */
  async update(header) {
    const end = header.lastTime === null ? Date.now() / 1000 : header.lastTime / 1000;
    let range = this.#range.wanted(end);
    const draw = (chart, points, data) => chart.update(points, range, data, this.fits.checked);
    await this.#memory.ask(
      "memory",
      { from: range[0], to: range[1] },
      (data) => {
        this.empty.update(header, data.first === null);
        range = this.#range.drawn(range, data.first);
        draw(this.size, [data.stats.x, data.stats.heap, data.stats.memsize], data);
      }, // each chart in its own task
      (data) => draw(this.live, [data.stats.x, data.stats.live], data),
      (data) => draw(this.rates, [data.rates.x, data.rates.created, data.rates.destroyed], data),
      (data) => {
        draw(this.gc, [data.rates.x, data.rates.pauses.map((ms) => (ms === null ? null : ms / 10))], data);
        draw(this.pauses, [data.runs.map(([start]) => start), data.runs.map(([, pause]) => pause)], data);
        this.#tell(data);
      },
    );
  }

  #tell({ totals, lastStats, runs, runCount, gaps }) {
    const rate = (value) => (value === null ? "–" : `${format.count(value)}/s`);
    this.#rename(lastStats);
    this.#set("heap", format.bytes(totals.heap));
    this.#set("memsize", format.bytes(totals.memsize));
    this.#set("live", format.count(totals.live));
    this.#set("allocated", rate(totals.created));
    this.#set("freed", rate(totals.destroyed));
    const longest = runs.reduce((most, [, pause]) => Math.max(most, pause), 0);
    this.#set("GC runs", runCount ? format.count(runCount) : "–");
    this.#set("longest GC", runCount ? format.milliseconds(longest) : "–");
    this.#set("GC share", format.percent(totals.pauses / 1000, totals.seconds));
    this.figures.update([...(lastStats ?? [])]);
    const notes = [];
    if (gaps.length) {
      const missing = gaps.reduce((sum, [, , messages]) => sum + messages, 0);
      const where = gaps.length === 1 ? "one place, which is" : `${format.count(gaps.length)} places, which are`;
      notes.push(`${format.count(missing)} messages are missing in ${where} shaded.`);
    }
    setText(this.note, notes.join(" "));
  }

  /** Name the figures by what they are, which depends on the language: Python's profiler also sends its process's. */
  #rename(lastStats) {
    if (!lastStats) return;
    const names = lastStats.has("process_rss") ? PYTHON : RUBY;
    for (const key of ["heap", "memsize", "live"]) setText(this.#tiles.get(key).name, names[key]);
    this.size.rename([names.heap, names.memsize]);
    this.live.rename([names.live]);
  }

  #tile(key) {
    const [name, value] = [h("dt", {}, RUBY[key] ?? key), h("dd", {}, "–")];
    this.#tiles.set(key, { name, value });
    return h("dl", { class: "tile" }, name, value);
  }

  #set(key, text) {
    const { value } = this.#tiles.get(key);
    setText(value, text);
    setAttribute(value, "title", text === "–" ? "the profiler does not report it, or not yet" : null);
  }
}

/** The names of total_heap_size, total_memsize and heap_live_slots. */
const RUBY = { heap: "heap size", memsize: "memory size", live: "live objects" };
const PYTHON = { heap: "RSS", memsize: "traced by tracemalloc", live: "allocator blocks" };
