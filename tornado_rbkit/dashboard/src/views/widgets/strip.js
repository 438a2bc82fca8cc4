// A strip of activity on a canvas: how busy each thread was at which time. A range of the time is chosen by the pointer or
// the keyboard.

import { colour } from "./chart.js";
import { h } from "./dom.js";
import * as format from "./format.js";

const ROW = 16; // px
const AXIS = 15; // px
const NAMES = 110; // px, the width of the names
const LEAST_DRAG = 4; // px
const STEP = 1 / 50; // of the time, for a key
const FIRST_RANGE = 1 / 10; // of the time, for the first key

/** @typedef {[number, number]} Range In ms since the first sample. */

export class Strip {
  element;
  #canvas = h("canvas", { "aria-hidden": "true" });
  #onchoose;
  /** @type {any} */
  #data = null; // what `draw` was given
  /** @type {Range | null} */
  #range = null;
  /** @type {Range | null} */
  #compared = null;
  /** @type {{from: number, to: number} | null} */
  #drag = null; // ms
  /** @type {number | null} */
  #due = null; // the pending animation frame

  /** @param {(range: Range | null) => void} onchoose Called with a chosen range, null for the whole time. */
  constructor(onchoose) {
    this.#onchoose = onchoose;
    this.element = h(
      "div",
      {
        class: "strip",
        tabindex: "0",
        role: "application",
        "aria-label": "Activity of the threads by time: drag to choose a range, arrow keys move it, Shift and arrow keys change its end, Escape chooses the whole time",
        onpointerdown: (event) => this.#begin(event),
        onpointermove: (event) => this.#move(event),
        onpointerup: () => this.#end(),
        onpointercancel: () => this.#cancel(),
        onkeydown: (event) => this.#step(event),
      },
      this.#canvas,
    );
    new ResizeObserver(() => this.#repaint()).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#repaint());
  }

  /**
   * Draw rows {title, busy, idle} of samples by time, in `count` parts of `width` ms.
   *
   * @param {{rows: any[], width: number, count: number, elapsed: number, from: number}} data
   * @param {Range | null} range
   * @param {Range | null} compared
   */
  draw(data, range, compared) {
    this.#data = data;
    this.#range = range;
    this.#compared = compared;
    this.#canvas.style.height = `${data.rows.length * ROW + AXIS}px`;
    this.#repaint();
  }

  /** The time that is drawn, in ms. */
  get #whole() {
    return Math.max(this.#data?.elapsed ?? 0, 1);
  }

  #timeAt(event) {
    const { left, width } = this.#canvas.getBoundingClientRect();
    return (this.#whole * Math.min(Math.max(event.clientX - left - NAMES, 0), width - NAMES)) / (width - NAMES);
  }

  #begin(event) {
    if (event.button || this.#data === null) return;
    this.element.setPointerCapture(event.pointerId);
    const at = this.#timeAt(event);
    this.#drag = { from: at, to: at };
  }

  #move(event) {
    if (this.#drag === null) return;
    this.#drag.to = this.#timeAt(event);
    this.#repaint();
  }

  #end() {
    if (this.#drag === null) return;
    const range = sorted(this.#drag);
    this.#drag = null;
    const perPixel = this.#whole / (this.#canvas.clientWidth - NAMES);
    this.#onchoose(range[1] - range[0] < LEAST_DRAG * perPixel ? null : range);
  }

  #cancel() {
    this.#drag = null;
    this.#repaint();
  }

  #step(event) {
    if (event.key === "Escape") this.#onchoose(null);
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction || this.#data === null) return;
    event.preventDefault(); // prevent scrolling
    const whole = this.#whole;
    if (this.#range === null) {
      this.#onchoose(direction > 0 ? [0, whole * FIRST_RANGE] : [whole * (1 - FIRST_RANGE), whole]);
      return;
    }
    const [from, to] = this.#range;
    const step = direction * STEP * whole;
    const bounded = Math.max(event.shiftKey ? STEP * whole + from - to : -from, Math.min(step, whole - to));
    this.#onchoose(event.shiftKey ? [from, to + bounded] : [from + bounded, to + bounded]);
  }

  #repaint() {
    this.#due ??= requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    this.#due = null;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (!width || this.#data === null) return;
    const context = this.#canvas.getContext("2d");
    this.#canvas.width = width * devicePixelRatio; // this clears the canvas
    this.#canvas.height = height * devicePixelRatio;
    context.scale(devicePixelRatio, devicePixelRatio);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    const { rows } = this.#data;
    const most = Math.max(1, ...rows.map(({ busy, idle }) => busy.reduce((all, count, i) => Math.max(all, count + idle[i]), 0)));
    const colours = { text: colour("text"), busy: colour("c1"), idle: colour("line") };
    rows.forEach((row, i) => this.#paintRow(context, row, i * ROW, most, width, colours));
    this.#paintRange(context, this.#compared, colour("c2"), width, height);
    this.#paintRange(context, this.#drag ? sorted(this.#drag) : this.#range, colour("accent"), width, height);
    this.#paintAxis(context, width, height);
  }

  #paintRow(context, { title, busy, idle }, top, most, width, colours) {
    context.fillStyle = colours.text;
    context.fillText(fitting(context, title, NAMES - 8), 2, top + ROW / 2);
    const perPart = ((width - NAMES) * this.#data.width) / this.#whole;
    const bar = (i, count, below) => {
      if (!count) return;
      const tall = Math.max(1, ((ROW - 2) * count) / most);
      context.fillStyle = below === null ? colours.busy : colours.idle;
      const left = Math.round(i * perPart); // whole pixels, without seams between them
      const bottom = top + ROW - 1 - ((ROW - 2) * (below ?? 0)) / most;
      context.fillRect(NAMES + left, bottom - tall, Math.max(1, Math.round((i + 1) * perPart) - left), tall);
    };
    for (let i = 0; i < busy.length; i++) {
      bar(i, busy[i], null);
      bar(i, idle[i], busy[i]);
    }
  }

  #paintRange(context, range, edge, width, height) {
    if (range === null) return;
    const at = (ms) => NAMES + ((width - NAMES) * Math.min(ms, this.#whole)) / this.#whole;
    const [left, right] = range.map(at);
    context.globalAlpha = 0.18;
    context.fillStyle = edge;
    context.fillRect(left, 0, Math.max(1, right - left), height - AXIS);
    context.globalAlpha = 1;
    context.strokeStyle = edge;
    context.lineWidth = 2;
    context.strokeRect(left, 1, Math.max(1, right - left), height - AXIS - 2);
  }

  #paintAxis(context, width, height) {
    context.fillStyle = colour("dim");
    const room = width - NAMES;
    const step = niceStep((this.#whole * 70) / room);
    for (let ms = 0; ms <= this.#whole; ms += step) {
      const text = format.span(ms);
      const x = NAMES + (room * ms) / this.#whole;
      context.fillText(text, Math.min(x, width - context.measureText(text).width), height - AXIS / 2 + 1);
    }
  }
}

/** @returns {Range} */
function sorted({ from, to }) {
  return from < to ? [from, to] : [to, from];
}

/** Return the next of 1, 2 and 5 times a power of ten that is no smaller. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 5].find((digit) => digit * power >= least) ?? 10);
}

/** Return a text, cut on the right to fit into `room` px. */
function fitting(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let cut = text.slice(0, 40);
  while (cut.length > 1 && context.measureText(`${cut}…`).width > room) cut = cut.slice(0, -1);
  return `${cut}…`;
}
