// The choice of the time in view, which the charts of a view share.

import { h, setAttribute, setText } from "./dom.js";

const RANGES = /** @type {const} */ ([
  ["1 min", 60],
  ["5 min", 300],
  ["30 min", 1800],
  ["4 h", 14400],
  ["all", Infinity],
]);

const FIRST_SECONDS = 300;
const SHORTEST_SECONDS = 30;

/** The last seconds of the data, or a fixed part of it while a range is marked or the view is paused. */
export class TimeRange {
  element;
  /** What a chart calls when the user marks a range, or wants to see all again. */
  zoom;
  #seconds = FIRST_SECONDS;
  /** @type {[number, number] | null} */
  #fixed = null;
  /** @type {[number, number] | null} */
  #shown = null;
  /** @type {Map<number, HTMLElement>} */
  #buttons = new Map();
  #onchange;

  /** @param {{onchange: () => void}} options */
  constructor({ onchange }) {
    this.#onchange = onchange;
    this.zoom = { onzoom: (/** @type {number} */ from, /** @type {number} */ to) => this.#fix([from, to]), onreset: () => this.#fix(null) };
    this.pause = h("button", { type: "button", onclick: () => this.#fix(this.#fixed ? null : this.#shown) }, "Pause");
    this.element = h(
      "div",
      { class: "bar", role: "group", "aria-label": "Time range" },
      ...RANGES.map(([label, seconds]) => this.#button(label, seconds)),
      this.pause,
    );
    this.#mark();
  }

  /** What is chosen, for the address. */
  get choices() {
    const [from, to] = this.#fixed?.map((time) => time.toFixed(1)) ?? ["", ""];
    return { seconds: this.#seconds === FIRST_SECONDS ? "" : String(this.#seconds), from, to };
  }

  /** @param {URLSearchParams} choices */
  restore(choices) {
    const seconds = Number(choices.get("seconds") ?? FIRST_SECONDS);
    if (this.#buttons.has(seconds)) this.#seconds = seconds;
    const [from, to] = [Number(choices.get("from") ?? NaN), Number(choices.get("to") ?? NaN)];
    this.#fixed = from < to ? [from, to] : null;
    this.#mark();
  }

  /** Go back to the last seconds of the data. */
  forget() {
    this.#fixed = null;
    this.#mark();
  }

  /**
   * Return the range to ask for.
   *
   * @param {number} end The time of the newest data.
   * @returns {[number, number]}
   */
  wanted(end) {
    return this.#fixed ?? [end - this.#seconds, end];
  }

  /**
   * Return the range to draw: no more than there is data.
   *
   * @param {[number, number]} wanted
   * @param {number | null} first The time of the oldest data.
   * @returns {[number, number]}
   */
  drawn([from, to], first) {
    const earliest = Math.min(Math.max(from, first ?? to), to - SHORTEST_SECONDS);
    this.#shown = this.#fixed ? [from, to] : [earliest, to];
    return this.#shown;
  }

  /**
   * @param {string} label
   * @param {number} seconds
   */
  #button(label, seconds) {
    const choose = () => {
      this.#seconds = seconds;
      this.#fix(null);
    };
    const button = h("button", { type: "button", onclick: choose }, label);
    this.#buttons.set(seconds, button);
    return button;
  }

  /** @param {[number, number] | null} range */
  #fix(range) {
    this.#fixed = range;
    this.#mark();
    this.#onchange();
  }

  #mark() {
    for (const [seconds, button] of this.#buttons) setAttribute(button, "aria-pressed", String(seconds === this.#seconds && !this.#fixed));
    setAttribute(this.pause, "aria-pressed", String(this.#fixed !== null));
    setText(this.pause, this.#fixed ? "Go on" : "Pause");
  }
}
