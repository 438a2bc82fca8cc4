// What is known of one function: its callers, its callees, and its lines by time.

import { h, setText } from "../widgets/dom.js";
import * as format from "../widgets/format.js";
import { Table } from "../widgets/table.js";

export class FunctionDetails {
  element;
  #name = h("h3", { tabindex: "-1" });
  #place = h("p", { class: "hint" });
  #lists;
  #cell;
  #total = 0; // samples of the function

  /**
   * `time(samples)` returns how long samples took, `cell(samples)` the same for a cell of a table; `choose(index)` is
   * called when a caller or callee is chosen.
   */
  constructor({ time, cell, choose }) {
    this.time = time;
    this.#cell = cell;
    this.#lists = [
      this.#list("callers", "Called by", "function", choose),
      this.#list("callees", "Calls", "function", choose),
      this.#list("lines", "Its lines", "line", null),
    ];
    this.element = h("div", { class: "detail", hidden: true }, this.#name, this.#place, ...this.#lists.flatMap(({ elements }) => elements));
  }

  /** Show the rows of another function in their own order. */
  rearrange() {
    for (const { table } of this.#lists) table.rearrange();
  }

  /** Move the focus to the function's name if it is among its details, where the clicked element may be removed. */
  get keepFocus() {
    const followed = this.element.contains(document.activeElement);
    return () => followed && this.#name.focus();
  }

  /** Show the worker's details of a function; `whole` is the number of samples looked at. */
  async show(data, whole) {
    const share = (samples) => `${this.time(samples)}, ${format.percent(samples, whole)}`;
    this.element.hidden = false;
    setText(this.#name, data.label);
    setText(this.#place, [format.place(data.file, data.line), `self ${share(data.self)}`, `total ${share(data.samples)}`].filter(Boolean).join("; "));
    this.#place.title = data.file;
    this.#total = data.samples;
    for (const { key, table, none } of this.#lists) {
      table.element.hidden = !data[key].length;
      none.hidden = data[key].length > 0;
      await table.update(data[key]);
    }
  }

  /** Return the elements of a list of the current function; `key` names the list in its details. */
  #list(key, title, label, choose) {
    const time = (of, name, hint) => ({
      label: name,
      title: hint,
      number: true,
      text: (row) => `${this.#cell(row[of])}  ${format.percent(row[of], this.#total)}`,
      hint: (row) => format.plural(row[of], "sample"),
      bar: (row) => (this.#total ? row[of] / this.#total : 0),
    });
    const columns =
      key === "lines"
        ? [time("self", "self", "time at the line itself; and its share of the total of the function above"), time("samples", "total", "time at the line and in what it called")]
        : [time("samples", "time", "and its share of the total of the function above")];
    const table = new Table({
      caption: title,
      key: (row) => row.index,
      onselect: choose && ((row) => choose(row.index)),
      columns: [{ label, text: (row) => row.label }, ...columns],
    });
    const none = h("p", { class: "hint" }, "none");
    return { key, table, none, elements: [h("h4", {}, title), none, table.element] };
  }
}
