// The flame graph in each order, and the two graphs of a sandwich.

import { h } from "../widgets/dom.js";
import { FlameGraph, changeColour, legendColour } from "../widgets/flame.js";
import * as format from "../widgets/format.js";
import { Latest } from "../latest.js";
import { KINDS } from "../../model/cpu/functions.js";

export const ORDERS = { calls: "Left heavy", time: "Time order", callers: "Callers first", sandwich: "Sandwich" };

const NOTHING = [{ name: "all", value: 0, self: 0, parent: null }];

const CHANGES = /** @type {[number, string][]} */ ([[1, "+: more of the time than before"], [0, "as before"], [-1, "−: less than before"]]);

const HINT = "Click zooms in, Escape or Back out.";

export class Graphs {
  element;
  legends;
  /** What is drawn: the thread of a graph in the order of time, the zoomed levels, and the share that the search matches. */
  shown = { thread: "", zoom: 0, matched: "" };
  #graph;
  #callers;
  #order = "calls";
  #search = "";
  #whole = 0; // of the graph: samples, ms in the order of time, or parts of a difference
  #data = new Latest();
  #time;
  #kinds = h("p", { class: "hint legend" }, ...Object.entries(KINDS).map(([kind, name]) => legend(name, legendColour(kind))), HINT);
  #changes = h("p", { class: "hint legend", hidden: true }, ...CHANGES.map(([change, name]) => legend(name, changeColour(change))), "pp: percentage points of the time looked at");

  /**
   * `time(samples)` returns how long samples took; `choose(path)` is called with the path to a chosen frame, `back()`
   * on Escape.
   */
  constructor({ time, choose, back }) {
    this.#time = time;
    const on = { describe: (node, parent) => this.#describe(node, parent), choose, back };
    this.#callers = new FlameGraph(on, { label: "Flame graph of the callers", isUp: true });
    this.#graph = new FlameGraph(on);
    this.element = h("div", { class: "graphs" }, this.#graph.element, this.#callers.element); // the callers are drawn above
    this.legends = [this.#kinds, this.#changes];
  }

  /** Drop the result of the request under way. */
  cancel() {
    this.#data.cancel();
  }

  /** Mark the frames of a function, or of none. */
  select(fn) {
    this.#graph.select(fn);
    this.#callers.select(fn);
  }

  /**
   * Draw what `query` looks at: in an order, in groups, below a path; a sandwich of the function `index`, if there is
   * one. `another` says that it is not the graph drawn before.
   */
  async draw({ order, group, path, index, ...query }, another) {
    this.#order = order;
    this.#search = query.search;
    const isSandwich = order === "sandwich";
    if (isSandwich && index !== null) {
      await this.#data.ask("sandwich", { ...query, index }, (data) => {
        this.#draw(data.callees, another);
        this.#callers.draw(data.callers.frames, 0, this.#found, another);
      });
    } else {
      this.#callers.draw(NOTHING, 0, () => false, true);
      const shown = { ...query, order: isSandwich ? "calls" : order, group: group || null, path };
      await this.#data.ask("flame", shown, (data) => this.#draw(data, another));
    }
    this.element.classList.toggle("sandwich", isSandwich);
    this.#graph.element.style.setProperty("--above", `${this.#graph.element.offsetTop}px`); // it has the rest of the window's height
  }

  #draw({ frames, zoom, total, matched, thread = "" }, another) {
    this.#whole = total;
    this.shown = { thread, zoom, matched: this.#search && !thread ? format.percent(matched, frames[zoom].value) : "" };
    this.#kinds.hidden = frames[0].before !== undefined;
    this.#changes.hidden = !this.#kinds.hidden;
    this.#graph.draw(frames, zoom, this.#found, another);
  }

  get #found() {
    const wanted = this.#search.toLowerCase();
    return ({ fn, name, file }) => wanted !== "" && fn !== undefined && `${name} ${file}`.toLowerCase().includes(wanted);
  }

  /** Return the lines of a frame's tooltip. */
  #describe(node, parent) {
    const { file, line, self, value, cut, before, start } = node;
    const place = format.place(file, line);
    if (start !== undefined) return [place, `${format.span(value)} from ${format.span(start)}`].filter(Boolean);
    if (before !== undefined) {
      const now = value - before;
      return [place, `${format.percent(now, 1)} of the time, before ${format.percent(before, 1)}: ${format.points(now - before)}`].filter(Boolean);
    }
    const share = (samples) => `${this.#time(samples)}, ${format.percent(samples, this.#whole)}`;
    const ofParent = parent === null ? "" : `; ${format.percent(value, parent.value)} of ${this.#order === "callers" ? "the frame above" : "its caller"}`;
    return [place, cut ? "" : `self ${share(self)}`, `total ${share(value)} of all${ofParent}`].filter(Boolean);
  }
}

function legend(name, colour) {
  const item = h("span", {}, name);
  item.style.setProperty("--kind", colour); // not an attribute, which the Content-Security-Policy refuses
  return item;
}
