// The view on arrival: the figures of the process, without anything recorded, and one card for each question.

import { Chart } from "./widgets/chart.js";
import { h, setAttribute, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { suspectSentence } from "./growth.js";
import { Latest } from "./latest.js";
import { SlowFinder, slowLines } from "./slow.js";
import { TimeRange } from "./widgets/range.js";

/**
 * @typedef {import("./rpc.js").Header} Header
 * @typedef {{name: string, live: number, growth: number, rate: number}} Growing A class.
 * @typedef {object} Data What the worker's `overview` returns.
 * @property {number | null} first
 * @property {ReturnType<import("../model/vitals.js").Vitals["range"]>} vitals
 * @property {import("../model/vitals.js").Figures | null} latest
 * @property {{number: number, time: number}[]} snapshots
 * @property {[number, number, number][]} gaps
 * @property {number[]} restarts
 * @property {import("./slow.js").Slow} cpu
 * @property {Growing[]} growing
 * @property {{suspects: any[], seconds: number} | null} found
 */

export class OverviewView {
  element;
  refreshSeconds = 1;
  /** @type {(() => void) | undefined} Called when what the view shows was chosen anew. */
  onchange;
  #range = new TimeRange({ onchange: () => this.onchange?.() });
  /** @type {Map<string, {value: HTMLElement, box: HTMLElement}>} */
  #tiles = new Map();
  #data = new Latest();

  /**
   * @param {object} options
   * @param {HTMLButtonElement} options.recordMemory Starts the memory profile.
   * @param {(command: string, send: import("./rpc.js").Send) => Promise<string | null>} options.perform Sends a command; returns why it was not carried out.
   * @param {() => void} options.findGrowth
   * @param {(view: string) => void} options.open Shows another view.
   */
  constructor({ recordMemory, perform, findGrowth, open }) {
    const { zoom } = this.#range;
    const percent = (/** @type {number} */ value, digits = value < 10 ? 1 : 0) => `${value.toFixed(digits)} %`;
    const steps = Array.from({ length: 50 }, (_, i) => 2 ** i);
    this.rss = new Chart({ title: "Resident memory (RSS)", value: format.bytes, steps, series: [{ label: "RSS", colour: "c1" }], ...zoom });
    this.cpu = new Chart({
      title: "CPU time, and the part of it in the garbage collector",
      value: percent,
      series: [
        { label: "CPU, of one core", colour: "c2" },
        { label: "garbage collection", colour: "c4" },
      ],
      ...zoom,
    });
    this.recordMemory = recordMemory;
    this.find = h("button", { type: "button", class: "main", onclick: findGrowth }, "Find what grows");
    this.held = h("div", { role: "status" });
    this.slow = new SlowFinder(perform);
    this.busy = h("div", { role: "status" });
    this.growing = h("div", { role: "status" });
    const more = (/** @type {string} */ view, /** @type {string} */ text) => h("button", { type: "button", class: "link", onclick: () => open(view) }, text);
    this.cards = h(
      "div",
      { class: "cards" },
      card("Who holds the memory?", this.held, this.find, more("snapshots", "All snapshots")),
      card("What is slow?", h("div", {}, this.busy, this.slow.status), this.slow.button, more("cpu", "Flame graph")),
      card("What is allocated?", this.growing, recordMemory, more("objects", "All classes")),
    );
    this.tiles = h("div", { class: "tiles" }, ...["RSS", "CPU", "threads", "garbage collection"].map((name) => this.#tile(name)));
    this.note = h("p", { class: "hint", role: "status" });
    this.charts = h("div", {}, this.#range.element, h("div", { class: "charts" }, this.rss.element, this.cpu.element));
    this.element = h("section", { "aria-label": "Overview" }, this.tiles, this.note, this.cards, this.charts);
  }

  /** What is chosen in the view, for the address. */
  get choices() {
    return this.#range.choices;
  }

  /** @param {URLSearchParams} choices */
  restore(choices) {
    this.#range.restore(choices);
  }

  /** Reset the view for another session. */
  forget() {
    this.#data.cancel();
    this.#range.forget();
    this.slow.forget();
  }

  /**
   * @param {Header} header
   * @param {number} process
   */
  async update(header, process) {
    const end = header.lastTime === null ? Date.now() / 1000 : header.lastTime / 1000;
    const wanted = this.#range.wanted(end);
    await this.#data.ask(
      "overview",
      { from: wanted[0], to: wanted[1], process },
      (/** @type {Data} */ data) => this.#draw(data, header),
      (/** @type {Data} */ data) => {
        const range = this.#range.drawn(wanted, data.first);
        const { x, rss, cpu, gc } = data.vitals;
        this.rss.update([x, rss], range, data, false);
        this.cpu.update([x, cpu, gc], range, data, false);
      },
    );
  }

  /**
   * @param {Data} data
   * @param {Header} header
   */
  #draw(data, header) {
    const { latest } = data;
    this.tiles.hidden = this.charts.hidden = latest === null;
    setText(this.note, latest === null ? (header.state === "live" ? WITHOUT : header.state === "file" ? "This file has no figures of the whole process." : "") : "");
    this.note.hidden = !this.note.textContent;
    const share = (/** @type {number | null} */ value) => (value === null ? "–" : format.percent(value, 100));
    this.#set("RSS", format.bytes(latest?.rss), "resident memory: physical memory that the process uses");
    this.#set("CPU", share(latest?.cpu ?? null), "of one core, over the last second");
    this.#set("threads", format.count(latest?.threads), "of the process, including threads that run no Python code");
    const runs = latest?.runs ?? null; // Python before 3.15 does not say how long they take
    const collecting = (latest?.gc ?? null) === null && runs !== null ? format.plural(runs, "run") + "/s" : share(latest?.gc ?? null);
    this.#set("garbage collection", collecting, "share of the time, or runs, over the last second");
    this.#drawFound(data.found);
    const canRecord = header.state !== "file";
    this.find.hidden = !canRecord;
    this.#drawBusy(data.cpu, header);
    this.slow.button.hidden = !canRecord;
    const isOn = Boolean(header.facts?.object_trace_enabled);
    this.#answer(this.growing, data.growing, ({ name, live, rate }) => [h("b", {}, format.perSecond(rate)), ` ${name} `, h("span", { class: "hint" }, `${format.count(live)} live`)], {
      none: isOn ? "No class grows." : "A memory profile counts objects by class.",
    });
    this.recordMemory.hidden = !canRecord || isOn;
  }

  /**
   * @param {Data["cpu"]} cpu
   * @param {Header} header
   */
  #drawBusy(cpu, header) {
    const none = cpu.samples ? "All threads wait." : header.facts?.cpu_profiling_enabled ? "Waiting for the first samples." : "A profile names the busiest functions.";
    this.#answer(this.busy, slowLines(cpu), (line) => line, { none });
  }

  /** @param {Data["found"]} found */
  #drawFound(found) {
    const none = "Two heap snapshots, 20 s apart, show what grows and what holds it.";
    if (found === null) this.#text(this.held, none);
    else if (!found.suspects.length) this.#text(this.held, `Nothing grew in ${format.duration(found.seconds)}.`);
    else this.#answer(this.held, found.suspects.slice(0, 1), suspectSentence, { none });
  }

  /**
   * Show a line for each item, drawn anew only if it differs.
   *
   * @template Item
   * @param {HTMLElement} box
   * @param {Item[]} items
   * @param {(item: Item) => (string | Node)[]} line
   * @param {{none: string}} texts
   */
  #answer(box, items, line, { none }) {
    if (!items.length) {
      this.#text(box, none);
      return;
    }
    const drawn = items.map((item) => h("p", {}, ...line(item)));
    if (drawn.map((each) => each.textContent).join("") !== box.textContent) box.replaceChildren(...drawn);
  }

  /**
   * @param {HTMLElement} box
   * @param {string} text
   */
  #text(box, text) {
    setText(box, text);
  }

  /** @param {string} name */
  #tile(name) {
    const value = h("dd", {}, "–");
    const box = h("dl", { class: "tile" }, h("dt", {}, name), value);
    this.#tiles.set(name, { value, box });
    return box;
  }

  /**
   * @param {string} name
   * @param {string} text
   * @param {string} about
   */
  #set(name, text, about) {
    const { value, box } = /** @type {{value: HTMLElement, box: HTMLElement}} */ (this.#tiles.get(name));
    setText(value, text);
    setAttribute(box, "title", about);
  }
}

const WITHOUT =
  "This profiler does not send the figures of its process: memory, CPU time and threads of the whole process are shown for Python only.";

/**
 * @param {string} question
 * @param {HTMLElement} answer
 * @param {HTMLElement[]} buttons
 */
function card(question, answer, ...buttons) {
  return h("section", { class: "card", "aria-label": question }, h("h3", {}, question), answer, h("div", { class: "bar" }, ...buttons));
}
