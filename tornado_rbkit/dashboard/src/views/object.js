// One object of a snapshot: who holds it, what refers to it, and what it refers to.

import { h, setAttribute } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { Latest } from "./latest.js";

/**
 * @typedef {NonNullable<ReturnType<import("../model/snapshots.js").Snapshot["object"]>>} Details
 * @typedef {Omit<Details["path"]["steps"][number], "heldBy"> & {heldBy?: string}} Item An object in a list.
 */

export class ObjectDetail {
  element = h("div", { class: "detail" });
  /** The id of the object in view. @type {number | null} */
  id = null;
  /** @type {number | null} */
  #snapshot = null;
  /** @type {number[]} */
  #trail = []; // ids of the objects that were followed
  #details = new Latest();
  #onchange;

  /** @param {{onchange: () => void}} options Called when another object, or none, is in view. */
  constructor({ onchange }) {
    this.#onchange = onchange;
  }

  /**
   * Show an object of a snapshot, and begin a trail of objects; null shows none.
   *
   * @param {number} snapshot
   * @param {number | null} id
   */
  async show(snapshot, id) {
    this.#snapshot = snapshot;
    this.#trail = [];
    await this.#open(id);
  }

  /** Show nothing. */
  clear() {
    this.#trail = [];
    this.#open(null);
  }

  /**
   * Show an object of the same snapshot, from which the user can go back.
   *
   * @param {number} id
   */
  follow(id) {
    if (this.id !== null) this.#trail.push(this.id);
    this.#open(id);
  }

  /** @param {number | null} id */
  async #open(id) {
    this.id = id;
    this.element.replaceChildren();
    this.#details.cancel();
    this.#onchange();
    if (id !== null) await this.#details.ask("snapshotObject", { number: this.#snapshot, id }, (object) => this.#drawObject(object, id));
  }

  /**
   * @param {Details} object
   * @param {number} id
   */
  #drawObject(object, id) {
    const { steps } = object.path;
    const title = h("h3", { tabindex: "-1" }, `${object.name} ${format.objectId(object.id)}`);
    const back = h("button", { type: "button", onclick: () => this.#open(/** @type {number} */ (this.#trail.pop())) }, "Back");
    const more = (/** @type {number} */ shown, /** @type {number} */ count) => (count > shown ? h("p", { class: "hint" }, `and ${format.count(count - shown)} more`) : null);
    this.element.replaceChildren(
      ...(this.#trail.length ? [back] : []),
      title,
      h("p", {}, [format.bytes(object.size), `${format.bytes(object.retained)} retained`].join(", "), object.file ? `, made at ${format.place(object.file, object.line)}` : ""),
      h("h4", {}, "Held by"),
      ...(steps.length > 1 ? [h("p", {}, h("code", { class: "held-as" }, object.heldAs))] : []),
      ...(object.unreachable ? [h("p", { class: "hint" }, "Only by a cycle: nothing outside refers to it.")] : []),
      ...(steps.length > 1
        ? [h("ol", { class: "path", "aria-label": "A shortest path from a root" }, ...this.#steps(object.path, id))]
        : object.unreachable
          ? []
          : [h("p", { class: "hint" }, "Nothing in the snapshot refers to it: the interpreter holds it, or it is garbage.")]),
      h("h4", {}, `Referred to by ${format.count(object.referrerCount)}`),
      h("ul", { class: "referrers" }, ...object.referrers.map((one) => this.#item(one, id))),
      ...[more(object.referrers.length, object.referrerCount)].filter(Boolean),
      h("h4", {}, `Refers to ${format.count(object.referenceCount)}`),
      h("ul", { class: "references" }, ...object.references.map((one) => this.#item(one, id))),
      ...[more(object.references.length, object.referenceCount)].filter(Boolean),
      ...(object.elsewhere ? [h("p", { class: "hint" }, `and to ${format.count(object.elsewhere)} that are not in the snapshot`)] : []),
    );
    title.focus();
  }

  /**
   * @param {Details["path"]} path
   * @param {number} current
   */
  #steps({ steps, omitted }, current) {
    const items = steps.map((step) => this.#item(step, current));
    if (!omitted) return items;
    const half = steps.length / 2;
    setAttribute(items[half], "value", half + omitted + 1); // its number in the list
    return [...items.slice(0, half), h("li", { class: "hint omitted" }, `… ${format.count(omitted)} more …`), ...items.slice(half)];
  }

  /**
   * @param {Item} object
   * @param {number} current
   */
  #item(object, current) {
    const text = `${object.name} ${format.objectId(object.id)}`;
    const about = [object.heldBy, format.bytes(object.size), format.place(object.file, object.line)].filter(Boolean).join(", ");
    return h(
      "li",
      {},
      object.id === current ? h("b", {}, text) : h("button", { type: "button", class: "link", onclick: () => this.follow(object.id) }, text),
      h("span", { class: "hint" }, ` ${about}`),
    );
  }
}
