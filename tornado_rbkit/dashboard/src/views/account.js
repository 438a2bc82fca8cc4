// The process's memory as a bar: what the snapshot's objects explain, what else tracemalloc knows, and the rest.

import { h, setAttribute } from "./widgets/dom.js";
import * as format from "./widgets/format.js";

export class Account {
  #bar = h("div", { class: "account-bar", role: "img" });
  #legend = h("p", { class: "hint legend" });
  element = h("div", { class: "account", hidden: true }, this.#bar, this.#legend);

  /**
   * Show the memory of a snapshot's process; nothing if its size is not known.
   *
   * @param {{bytes: number, resident: number | null, traced: number | null} | undefined} snapshot
   */
  show(snapshot) {
    this.element.hidden = !snapshot?.resident;
    if (!snapshot?.resident) return;
    const { resident } = snapshot;
    const parts = partsOf(resident, snapshot);
    const explained = parts.reduce((sum, { kind, bytes }) => sum + (kind === "rest" ? 0 : bytes), 0);
    this.#bar.replaceChildren(...parts.map((part) => painted(h("span", { class: part.kind, title: text(part, resident) }), part.bytes / resident)));
    setAttribute(this.#bar, "aria-label", `Of ${format.bytes(resident)} resident memory: ${parts.map((part) => text(part, resident)).join("; ")}`);
    const untraced = snapshot.traced === null ? " tracemalloc is off: Trace allocations shows how much of the rest Python allocated." : "";
    this.#legend.replaceChildren(
      h("b", {}, `${format.bytes(explained)} of ${format.bytes(resident)} RSS explained`),
      ...parts.map((part) => h("span", { class: part.kind }, text(part, resident))),
      untraced,
    );
  }
}

/**
 * Return the parts of the resident memory. tracemalloc also knows the objects that were made since it was started.
 *
 * @param {number} resident
 * @param {{bytes: number, traced: number | null}} snapshot
 */
export function partsOf(resident, { bytes, traced }) {
  const objects = Math.min(bytes, resident);
  const more = Math.min(Math.max(0, (traced ?? 0) - bytes), resident - objects);
  return [
    { kind: "objects", name: "objects in the snapshot", bytes: objects },
    ...(traced === null ? [] : [{ kind: "traced", name: "more that tracemalloc knows", bytes: more }]),
    { kind: "rest", name: "the rest: the interpreter, C libraries, free space of the allocator, what nobody tracks", bytes: resident - objects - more },
  ];
}

/**
 * @param {{name: string, bytes: number}} part
 * @param {number} resident
 */
function text({ name, bytes }, resident) {
  return `${name} ${format.bytes(bytes)} (${format.percent(bytes, resident)})`;
}

/**
 * @param {HTMLElement} element
 * @param {number} share
 */
function painted(element, share) {
  element.style.width = `${100 * share}%`; // not an attribute, which the Content-Security-Policy refuses
  return element;
}
