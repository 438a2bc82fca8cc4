// A flame graph on a canvas, which is one element to lay out regardless of the number of frames.

import { colour } from "./chart.js";
import { h, setText } from "./dom.js";
import * as format from "./format.js";

const ROW = 18; // px
const SMALLEST = 1; // px, the width of the smallest frame drawn
const KEPT_WIDTHS = 5000;
const FOUND = "#e600e6";
const INK = "#1d1208"; // readable on the colours of frames and of search results
const DIM = "#4d4038"; // the same, for the module of a name
const HUES = { own: 18, library: 210, standard: 140, native: 280, gc: 50, lock: 330 };
const CUT = "hsl(0 0% 72%)";
const STEPS_UP = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const STEPS = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class FlameGraph {
  element;
  #rows = []; // by depth: frames {node, key, parent, children, depth, from, to}, from 0 to 1, from left to right
  #current = null; // key of the frame under the pointer or the keyboard focus
  /** @type {(node: any) => boolean} */
  #found = () => false;
  #selected = null; // fn
  #on;
  #scroll;
  #spacer = h("div");
  #tipName = h("b", { "aria-live": "polite" }); // its figures change while samples arrive, so they are not read out
  #tip = h("div", { class: "tip", hidden: true }, this.#tipName);
  /** @type {{x: number, y: number} | null} */
  #pointer = null; // where the tooltip is, {x, y}; null for that of the keyboard
  #canvas = h("canvas", { "aria-hidden": "true" });
  #widths = new Map(); // px, by name
  #tallest = 0; // rows
  #isUp; // whether callers are above: the root is at the bottom
  #label;
  /** @type {number | null} */
  #due = null; // the pending animation frame

  /**
   * `on.describe(node, parent)` returns the lines of a frame's tooltip, `on.choose(path)` is called with the path to a
   * chosen frame, and `on.back()` on Escape. The root is at the top, or at the bottom if it `isUp`.
   */
  constructor(on, { label = "Flame graph", isUp = false } = {}) {
    this.#on = on;
    this.#isUp = isUp;
    this.#label = label;
    this.#scroll = h(
      "div",
      {
        class: "flame",
        tabindex: "0",
        role: "application",
        "aria-label": `${this.#label}: arrow keys go from frame to frame, Enter chooses one, Escape shows the whole. The table below has the same in numbers`,
        onscroll: () => this.#repaint(),
        onpointermove: (event) => this.#point(this.#at(event), event),
        onpointerleave: () => this.#point(null),
        onclick: (event) => this.#choose(this.#at(event)),
        onkeydown: (event) => this.#step(event),
        onblur: () => this.#point(null),
      },
      h("div", { class: "pane" }, this.#canvas), // as large as the visible part
      this.#spacer,
    );
    this.element = h("div", { class: "graph", hidden: true }, this.#scroll, this.#tip);
    new ResizeObserver(() => this.#repaint()).observe(this.#scroll);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#repaint());
  }

  /** Mark the frames of a function, or of none. */
  select(fn) {
    this.#selected = fn;
    this.#repaint();
  }

  /**
   * Draw the worker's frames {name, value, fn, parent}. The first `zoom` levels are as wide as the whole, and frames
   * with `found(node)` are marked. The height only grows, except for `another` graph, so content below does not jump.
   * The largest frame is on the left, unless frames are in the order of time: they have a `start`.
   */
  draw(nodes, zoom, found, another) {
    this.element.hidden = !nodes[0].value;
    this.#found = found;
    this.#rows = [];
    const frames = nodes.map((node) => ({ node, children: [] }));
    for (const frame of frames) {
      frame.parent = frames[frame.node.parent] ?? null;
      frame.depth = frame.parent ? frame.parent.depth + 1 : 0;
      frame.key = frame.parent ? `${frame.parent.key}/${frame.node.fn ?? "cut"}` : "";
      frame.parent?.children.push(frame);
    }
    Object.assign(frames[0], { from: 0, to: 1 });
    for (const row = [frames[0]]; row.length; ) {
      this.#rows.push([...row]);
      for (const frame of row.splice(0)) {
        row.push(...placed(frame, frame.depth < zoom));
      }
    }
    this.#tallest = Math.max(this.#rows.length, another ? 0 : this.#tallest);
    this.#spacer.style.height = `${this.#tallest * ROW}px`;
    this.#repaint();
    this.#tell(this.#frame(this.#current));
  }

  /** Paint in the next animation frame; the graph is busy until then. */
  #repaint() {
    this.#scroll.ariaBusy = "true";
    this.#due ??= requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    this.#due = null;
    this.#scroll.ariaBusy = null;
    const { clientWidth: width, clientHeight: height, scrollTop } = this.#scroll;
    if (!width) return;
    const context = this.#canvas.getContext("2d");
    this.#canvas.width = width * devicePixelRatio; // this clears the canvas
    this.#canvas.height = height * devicePixelRatio;
    this.#canvas.style.height = `${height}px`;
    context.scale(devicePixelRatio, devicePixelRatio);
    context.translate(0, -scrollTop);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    this.#rows.forEach((row, depth) => {
      const top = this.#top(depth);
      if (top + ROW > scrollTop && top < scrollTop + height) for (const frame of row) this.#paintFrame(context, frame, width);
    });
  }

  /** Return the position of a row, in px from the top of the graph. */
  #top(depth) {
    return ROW * (this.#isUp ? this.#tallest - 1 - depth : depth);
  }

  #paintFrame(context, { key, node, from, to, depth }, width) {
    if (node.gap) return;
    const top = this.#top(depth);
    const left = Math.round(from * width);
    const wide = Math.round(to * width) - left;
    if (wide < SMALLEST) return;
    context.fillStyle = this.#found(node) ? FOUND : colourOf(node);
    context.fillRect(left, top, Math.max(1, wide - 1), ROW - 1);
    if (key === this.#current || (node.fn !== undefined && node.fn === this.#selected)) {
      context.strokeStyle = key === this.#current ? colour("accent") : INK;
      context.lineWidth = 2;
      context.strokeRect(left + 1, top + 1, Math.max(1, wide - 3), ROW - 3);
    }
    this.#paintName(context, node, left + 4, top + ROW / 2, wide - 8);
  }

  /** Write a name with its module dimmed; cut it on the left to fit into `room` px. */
  #paintName(context, node, x, y, room) {
    const whole = `${node.name}${changeText(node)}`;
    const name = this.#widthOf(context, whole) <= room ? whole : node.name;
    const text = this.#fitting(context, name, room);
    if (!text) return;
    const own = text.length - Math.min(text.length, name.length - moduleLength(name));
    const before = text.slice(0, own);
    context.fillStyle = DIM;
    if (before) context.fillText(before, x, y);
    context.fillStyle = INK;
    context.fillText(text.slice(own), x + (before ? this.#widthOf(context, before) : 0), y);
  }

  #widthOf(context, text) {
    if (this.#widths.size > KEPT_WIDTHS) this.#widths.clear();
    let width = this.#widths.get(text);
    if (width === undefined) this.#widths.set(text, (width = context.measureText(text).width));
    return width;
  }

  /** Return a name, cut on the left to fit into `room` px. */
  #fitting(context, name, room) {
    if (room < 16) return "";
    const needed = this.#widthOf(context, name);
    if (needed <= room) return name;
    let text = `…${name.slice(-Math.max(1, Math.floor((name.length * room) / needed) - 1))}`;
    while (text.length > 2 && this.#widthOf(context, text) > room) text = `…${text.slice(2)}`;
    return text;
  }

  #at(event) {
    const { left, top } = this.#canvas.getBoundingClientRect();
    const x = (event.clientX - left) / this.#scroll.clientWidth;
    const at = Math.floor((event.clientY - top + this.#scroll.scrollTop) / ROW);
    const row = this.#rows[this.#isUp ? this.#tallest - 1 - at : at];
    return row?.find(({ from, to, node }) => from <= x && x < to && !node.gap) ?? null;
  }

  #frame(key) {
    for (const row of this.#rows) {
      const frame = row.find((one) => one.key === key);
      if (frame) return frame;
    }
    return null;
  }

  /** Make a frame the current one; `event` is the pointer's, if it is there. */
  #point(frame, event = /** @type {PointerEvent | null} */ (null)) {
    this.#pointer = event && { x: event.clientX, y: event.clientY };
    const key = frame?.key ?? null;
    if (key !== this.#current) {
      this.#current = key;
      this.#repaint();
    }
    this.#tell(frame);
  }

  /** Show the tooltip of a frame, beside the pointer or below the frame. */
  #tell(frame) {
    this.#tip.hidden = frame === null;
    if (frame === null) return;
    const lines = this.#on.describe(frame.node, frame.parent?.node ?? null);
    setText(this.#tipName, frame.node.name);
    lines.forEach((line, i) => setText(this.#tip.children[i + 1] ?? this.#tip.appendChild(h("div")), line));
    while (this.#tip.children.length > lines.length + 1) this.#tip.lastChild.remove();
    const { left, top, width } = this.#scroll.getBoundingClientRect();
    const own = { x: left + frame.from * width, y: top + this.#top(frame.depth) + ROW - this.#scroll.scrollTop };
    const { x, y } = this.#pointer ?? own;
    const { offsetWidth, offsetHeight } = this.#tip;
    const below = y + 16 + offsetHeight <= innerHeight;
    this.#tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - offsetWidth - 4))}px`;
    this.#tip.style.top = `${below ? y + 16 : Math.max(4, y - 12 - offsetHeight)}px`;
  }

  /** Choose a frame, or the caller of frames that are cut. */
  #choose(frame) {
    if (frame === null) return;
    const path = [];
    for (let one = frame.node.cut ? frame.parent : frame; one.parent !== null; one = one.parent) path.unshift(one.node.fn);
    this.#on.choose(path);
  }

  #step(event) {
    const frame = this.#frame(this.#current);
    if (event.key === "Enter") this.#choose(frame);
    if (event.key === "Escape") this.#on.back();
    const { [event.key]: step } = this.#isUp ? STEPS_UP : STEPS;
    if (!step || !this.#rows.length) return;
    event.preventDefault(); // prevent scrolling
    this.#point(frame === null ? this.#rows[0][0] : (this.#beside(frame, ...step) ?? frame));
    const top = this.#top(this.#frame(this.#current).depth);
    const { scrollTop, clientHeight } = this.#scroll;
    this.#scroll.scrollTop = Math.min(top, Math.max(scrollTop, top + ROW - clientHeight));
    this.#tell(this.#frame(this.#current));
  }

  #beside(frame, down, right) {
    if (down < 0) return frame.parent;
    const row = this.#rows[frame.depth];
    if (right) return row[row.indexOf(frame) + right];
    return frame.children.filter(({ node }) => !node.gap).toSorted((a, b) => b.node.value - a.node.value)[0];
  }
}

/** Place the children of a frame from left to right; a child that is `alone` fills the width. Return them. */
function placed({ node, children, from, to }, alone) {
  const whole = alone ? children[0].node.value : node.value;
  let at = from;
  if (node.start === undefined) children.sort((a, b) => Number(Boolean(a.node.cut)) - Number(Boolean(b.node.cut)) || b.node.value - a.node.value || (a.node.name < b.node.name ? -1 : 1));
  for (const child of children) {
    if (child.node.start !== undefined) at = from + ((to - from) * (child.node.start - node.start)) / whole;
    child.from = at;
    at = child.to = at + ((to - from) * child.node.value) / whole;
  }
  return children;
}

/** Return the number of characters of the module at the beginning of a Python name, such as `package.module.`. */
function moduleLength(name) {
  return /^(?:[a-z_]\w*\.)*(?=[\w<])/.exec(name)?.[0].length ?? 0;
}

/** Return a light colour with the hue of the kind of code; its shade depends only on the function's name. */
function colourOf({ name, kind, cut, value, before }) {
  if (cut) return CUT;
  if (before !== undefined) return changeColour((value - 2 * before) / value);
  let hash = 0;
  if (kind) for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 4096;
  return kind ? `hsl(${HUES[kind] + (hash % 25)} ${kind === "own" ? 88 : 45}% ${68 + (hash % 13)}%)` : "hsl(40 30% 80%)";
}

/** Return the colour of a change, from -1 (there is nothing any more) to 1 (there was nothing before): blue to red. */
export function changeColour(change) {
  return `hsl(${change < 0 ? 212 : 8} ${Math.round(90 * Math.min(1, 3 * Math.abs(change)))}% ${Math.round(88 - 26 * Math.abs(change))}%)`;
}

/** Return the change of a frame's share as a text, for those who cannot tell the colours apart. */
function changeText({ value, before }) {
  return before === undefined ? "" : ` ${format.points(value - 2 * before)}`;
}

/** Return the colour of a kind of code in the legend. */
export function legendColour(kind) {
  return `hsl(${HUES[kind] + 12} ${kind === "own" ? 88 : 45}% 74%)`;
}
