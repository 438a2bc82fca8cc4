// The objects of a class, or those made at one place, and the ways in which they are held.

import { h, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { Latest } from "./latest.js";
import { Table } from "./widgets/table.js";

/**
 * @typedef {import("../model/snapshots.js").Snapshot} Snapshot
 * @typedef {{number: number | null, against: number | null, by: import("./classtables.js").By, name: string | null}} Chosen
 */

export class Members {
  element;
  /** @type {Chosen} */
  #chosen = { number: null, against: null, by: "class", name: null };
  #objects = new Latest(); // requests for the objects
  #ways = new Latest(); // requests for the ways in which they are held
  #onopen;

  /** @param {{onopen: (id: number) => void}} options Called with the id of an object to show. */
  constructor({ onopen }) {
    this.#onopen = onopen;
    this.title = h("h3", { tabindex: "-1" });
    this.table = new Table({
      caption: "Objects of the class",
      key: (row) => row.id,
      onselect: (row) => onopen(row.id),
      onsort: () => this.#list(),
      columns: [
        { label: "object", text: (row) => format.objectId(row.id) },
        { label: "size", number: true, text: (row) => format.bytes(row.size) },
        { label: "retained", number: true, text: (row) => format.bytes(row.retained) },
        { label: "made at", text: (row) => format.place(row.file, row.line), hint: (row) => row.file },
      ],
    });
    this.note = h("p", { class: "hint" });
    this.ways = h("ul", { class: "ways", "aria-label": "How they are held" });
    this.waysBox = h("div", {}, h("h4", {}, "How they are held"), this.ways);
    this.element = h("div", { class: "objects" }, this.title, this.waysBox, this.note, this.table.element);
    this.clear();
  }

  /** Show nothing. */
  clear() {
    this.#objects.cancel();
    this.#ways.cancel();
    this.element.hidden = true;
    this.ways.replaceChildren();
  }

  /**
   * List the objects of a class or place; in a comparison those that the earlier snapshot has not.
   *
   * @param {Chosen} chosen
   */
  async show(chosen) {
    this.#chosen = chosen;
    this.clear();
    const { number, by, name } = chosen;
    if (name === null) return;
    this.waysBox.hidden = by !== "class";
    if (by === "class") this.#ways.ask("snapshotWays", { number, name }, (data) => this.#drawWays(data));
    await this.#list();
  }

  async #list() {
    const { number, by, name, against } = this.#chosen;
    const query = { number, by, name, butNotIn: against, limit: this.table.limit };
    await this.#objects.ask("snapshotObjects", query, (/** @type {ReturnType<Snapshot["objectsOf"]>} */ data) => {
      this.element.hidden = false;
      setText(this.title, name);
      const which = against === null ? "objects" : `objects not in snapshot ${against}`;
      const cut = data.matching > data.rows.length ? `, the ${data.rows.length} that retain most are shown` : "";
      const unknown = by === "class" && data.rows.length && !data.rows.some((row) => row.file) ? ` ${UNKNOWN_PLACES}` : "";
      setText(this.note, `${format.count(data.matching)} ${which}${cut}.${unknown}`);
      this.table.rearrange();
      this.table.update(data.rows, data.matching);
    });
  }

  /** @param {ReturnType<Snapshot["waysOf"]>} ways */
  #drawWays({ rows, matching }) {
    const more = matching > rows.length ? [h("li", { class: "hint" }, `and in ${format.count(matching - rows.length)} more ways`)] : [];
    this.ways.replaceChildren(
      ...rows.map((row) =>
        h(
          "li",
          {},
          h("button", { type: "button", class: "link", onclick: () => this.#onopen(row.id) }, row.text),
          h("span", { class: "hint" }, ` ${format.plural(row.count, "object")}, ${format.bytes(row.retained)} retained${row.unreachable ? ", unreachable" : ""}`),
        ),
      ),
      ...more,
    );
  }
}

export const UNKNOWN_PLACES =
  "The place of creation is known for Python's functions, for Python objects created while tracemalloc was on " +
  "(python -X tracemalloc), and for Ruby objects created while the memory profile was on.";
