// A table that is sorted by its headers, and whose rows stay where they are while it is being read.

import { h, setAttribute, setText } from "./dom.js";

// em, as in the style sheet.
const NAME_WIDTH = 15;
const NUMBER_WIDTH = 6.4;
const SHARE_WIDTH = 10;

export class Table {
  element;
  sort;
  descending;
  #columns;
  #onselect;
  #body;
  #rows = new Map(); // by key: {row, cells, data}
  #order = []; // keys
  #held = false;
  #selected = null;
  #rearrange = true;

  /**
   * `columns`: {key, label, title, text(row), bar(row) in 0..1, draw(cell, row), number}; `key(row)` names a row;
   * `onsort()` is called when another order is wanted, `onselect(row)` when a row is chosen.
   */
  constructor({ caption, columns, key, sort, descending = true, onsort = () => {}, onselect = null }) {
    this.sort = sort;
    this.descending = descending;
    this.#columns = columns;
    this.key = key;
    this.#onselect = onselect;
    this.#body = h("tbody");
    this.headers = new Map();
    const header = h("tr", {}, ...columns.map((column) => this.#header(column, onsort)));
    const table = h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, header), this.#body);
    const widths = columns.slice(1).map(({ bar }) => (bar ? SHARE_WIDTH : NUMBER_WIDTH));
    table.style.minWidth = `${widths.reduce((sum, width) => sum + width, NAME_WIDTH)}em`; // narrower, it is scrolled
    this.element = h(
      "div",
      {
        class: "table",
        onpointerenter: () => (this.#held = true),
        onpointerleave: () => (this.#held = false),
      },
      table,
    );
    this.#markSorted();
  }

  /** Show these rows. What is pointed at or has the focus is not moved; the order is made good afterwards. */
  update(rows) {
    const keys = rows.map(this.key);
    const held = (this.#held || this.#body.contains(document.activeElement)) && !this.#rearrange;
    this.#rearrange = false;
    const present = new Set(keys);
    for (const [key, { row }] of this.#rows) {
      if (!present.has(key)) {
        row.remove();
        this.#rows.delete(key);
      }
    }
    rows.forEach((data, i) => this.#show(keys[i], data));
    const kept = held ? this.#order.filter((key) => present.has(key)) : [];
    const before = new Set(kept);
    this.#order = [...kept, ...keys.filter((key) => !before.has(key))];
    this.#order.forEach((key, i) => {
      const { row } = this.#rows.get(key);
      if (this.#body.children[i] !== row) this.#body.insertBefore(row, this.#body.children[i] ?? null);
    });
  }

  /** The next rows are others: show them in their own order. */
  rearrange() {
    this.#rearrange = true;
  }

  /** Mark the row of this key, or none. */
  select(key) {
    this.#selected = key;
    for (const [each, { row }] of this.#rows) setAttribute(row, "aria-selected", each === key ? "true" : null);
  }

  #header(column, onsort) {
    const cell = h("th", { scope: "col", class: column.bar ? "number share" : column.number ? "number" : column.draw ? "drawn" : null, title: column.title ?? null });
    if (column.key) {
      cell.append(
        h(
          "button",
          {
            type: "button",
            onclick: () => {
              this.descending = this.sort === column.key ? !this.descending : Boolean(column.number);
              this.sort = column.key;
              this.rearrange();
              this.#markSorted();
              onsort();
            },
          },
          column.label,
        ),
      );
      this.headers.set(column.key, cell);
    } else {
      cell.append(column.label);
    }
    return cell;
  }

  #markSorted() {
    for (const [key, cell] of this.headers) {
      setAttribute(cell, "aria-sort", key === this.sort ? (this.descending ? "descending" : "ascending") : null);
    }
  }

  #show(key, data) {
    let shown = this.#rows.get(key);
    if (shown === undefined) {
      shown = { row: h("tr"), cells: [], data };
      for (const column of this.#columns) {
        const cell = h(column === this.#columns[0] ? "th" : "td", { class: column.number ? "number" : null });
        if (column === this.#columns[0]) cell.scope = "row";
        shown.row.append(cell);
        shown.cells.push(column === this.#columns[0] && this.#onselect ? this.#link(cell, shown) : cell);
      }
      if (this.#onselect) shown.row.addEventListener("click", () => this.#onselect(shown.data));
      this.#rows.set(key, shown);
      setAttribute(shown.row, "aria-selected", key === this.#selected ? "true" : null);
    }
    shown.data = data;
    this.#columns.forEach((column, i) => {
      if (column.draw) column.draw(shown.cells[i], data);
      else setText(shown.cells[i], column.text(data));
      if (column.bar) shown.cells[i].style.setProperty("--share", `${100 * column.bar(data)}%`);
      if (column.hint) shown.cells[i].title = column.hint(data);
    });
  }

  #link(cell) {
    const button = h("button", { type: "button", class: "link" }); // its click is the row's
    cell.append(button);
    return button;
  }
}
