// A flame graph on a canvas, which is one element to lay out regardless of the number of frames.

import { colour } from "./chart.js";
import { h } from "./dom.js";

const ROW = 18; // px
const SMALLEST = 1; // px, the width of the smallest frame drawn
const KEPT_WIDTHS = 5000;
const FOUND = "#e600e6";
const INK = "#1d1208"; // readable on the colours of frames and of search results
const STEPS = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class FlameGraph {
  element;
  #rows = []; // by depth: frames {node, key, parent, children, depth, from, to}, from 0 to 1, from left to right
  #current = null; // key of the frame under the pointer or the keyboard focus
  #found = () => false;
  #on;
  #spacer = h("div");
  #canvas = h("canvas", { "aria-hidden": "true" });
  #widths = new Map(); // px, by name
  #tallest = 0; // rows
  #due = null; // the pending animation frame

  /** `on.point(node)` is called with the current frame's node or null, `on.choose(path)` with the path to a frame. */
  constructor(on) {
    this.#on = on;
    this.element = h(
      "div",
      {
        class: "flame",
        hidden: true,
        tabindex: "0",
        role: "application",
        "aria-label": "Flame graph: arrow keys go from frame to frame, Enter zooms in. The table below has the same in numbers",
        onscroll: () => this.#repaint(),
        onpointermove: (event) => this.#point(this.#at(event)),
        onpointerleave: () => this.#point(null),
        onclick: (event) => this.#choose(this.#at(event)),
        onkeydown: (event) => this.#step(event),
        onblur: () => this.#point(null),
      },
      h("div", { class: "pane" }, this.#canvas), // as large as the visible part
      this.#spacer,
    );
    new ResizeObserver(() => this.#repaint()).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#repaint());
  }

  /**
   * Draw the worker's frames {name, value, fn, parent}. The first `zoom` levels are as wide as the whole, and frames
   * with `found(node)` are marked. The height only grows, except for `another` graph, so content below does not jump.
   */
  draw(nodes, zoom, found, another) {
    this.element.hidden = !nodes[0].value;
    this.#found = found;
    this.#rows = [];
    const frames = nodes.map((node) => ({ node, children: [] }));
    for (const frame of frames) {
      frame.parent = frames[frame.node.parent] ?? null;
      frame.depth = frame.parent ? frame.parent.depth + 1 : 0;
      frame.key = frame.parent ? `${frame.parent.key}/${frame.node.fn}` : "";
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
    this.#point(this.#frame(this.#current));
  }

  /** Paint in the next animation frame. */
  #repaint() {
    this.#due ??= requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    this.#due = null;
    const { clientWidth: width, clientHeight: height, scrollTop } = this.element;
    if (!width) return;
    const context = this.#canvas.getContext("2d");
    this.#canvas.width = width * devicePixelRatio; // this clears the canvas
    this.#canvas.height = height * devicePixelRatio;
    this.#canvas.style.height = `${height}px`;
    context.scale(devicePixelRatio, devicePixelRatio);
    context.translate(0, -scrollTop);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (let depth = Math.floor(scrollTop / ROW); depth < this.#rows.length && depth * ROW < scrollTop + height; depth++) {
      for (const frame of this.#rows[depth]) this.#paintFrame(context, frame, width);
    }
  }

  #paintFrame(context, { key, node, from, to, depth }, width) {
    const left = Math.round(from * width);
    const wide = Math.round(to * width) - left;
    if (wide < SMALLEST) return;
    context.fillStyle = this.#found(node) ? FOUND : colourOf(node);
    context.fillRect(left, depth * ROW, Math.max(1, wide - 1), ROW - 1);
    if (key === this.#current) {
      context.strokeStyle = colour("accent");
      context.lineWidth = 2;
      context.strokeRect(left + 1, depth * ROW + 1, Math.max(1, wide - 3), ROW - 3);
    }
    const text = this.#fitting(context, node.name, wide - 8);
    context.fillStyle = INK;
    if (text) context.fillText(text, left + 4, depth * ROW + ROW / 2);
  }

  /** Return a name, cut to fit into `room` px. */
  #fitting(context, name, room) {
    if (room < 16) return "";
    if (this.#widths.size > KEPT_WIDTHS) this.#widths.clear();
    let needed = this.#widths.get(name);
    if (needed === undefined) this.#widths.set(name, (needed = context.measureText(name).width));
    return needed <= room ? name : `${name.slice(0, Math.max(1, Math.floor((name.length * room) / needed) - 2))}…`;
  }

  #at(event) {
    const { left, top } = this.#canvas.getBoundingClientRect();
    const x = (event.clientX - left) / this.element.clientWidth;
    const row = this.#rows[Math.floor((event.clientY - top + this.element.scrollTop) / ROW)];
    return row?.find(({ from, to }) => from <= x && x < to) ?? null;
  }

  #frame(key) {
    for (const row of this.#rows) {
      const frame = row.find((one) => one.key === key);
      if (frame) return frame;
    }
    return null;
  }

  #point(frame) {
    const key = frame?.key ?? null;
    if (key !== this.#current) {
      this.#current = key;
      this.#repaint();
    }
    this.#on.point(frame?.node ?? null);
  }

  #choose(frame) {
    if (frame === null) return;
    const path = [];
    for (let one = frame; one.parent !== null; one = one.parent) path.unshift(one.node.fn);
    this.#on.choose(path);
  }

  #step(event) {
    const frame = this.#frame(this.#current);
    if (event.key === "Enter") this.#choose(frame);
    const step = STEPS[event.key];
    if (!step || !this.#rows.length) return;
    event.preventDefault(); // prevent scrolling
    this.#point(frame === null ? this.#rows[0][0] : (this.#beside(frame, ...step) ?? frame));
    const top = this.#frame(this.#current).depth * ROW;
    const { scrollTop, clientHeight } = this.element;
    this.element.scrollTop = Math.min(top, Math.max(scrollTop, top + ROW - clientHeight));
  }

  #beside(frame, down, right) {
    if (down < 0) return frame.parent;
    const row = this.#rows[frame.depth];
    if (right) return row[row.indexOf(frame) + right];
    return frame.children.toSorted((a, b) => b.node.value - a.node.value)[0];
  }
}

/** Place the children of a frame, by name from left to right; a child that is `alone` fills the width. Return them. */
function placed({ node, children, from, to }, alone) {
  const whole = alone ? children[0].node.value : node.value;
  let at = from;
  children.sort((a, b) => (a.node.name < b.node.name ? -1 : 1));
  for (const child of children) {
    child.from = at;
    at = child.to = at + ((to - from) * child.node.value) / whole;
  }
  return children;
}

/** Return a warm, light colour that depends only on the function's name. */
function colourOf({ name, fn }) {
  let hash = 0;
  if (fn !== undefined) for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 4096;
  return `hsl(${10 + (hash % 45)} 85% ${66 + (hash % 13)}%)`;
}
