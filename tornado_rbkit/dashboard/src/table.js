// A table that is sorted by its headers, and whose rows stay where they are while it is being read.

import { h, nextFrame, setAttribute, setText } from "./dom.js";

// em, as wide as the column is at least.
const NAME_WIDTH = 15;
const NUMBER_WIDTH = 6.4;
const SHARE_WIDTH = 10;
const DRAWN_WIDTH = 9;

// Cells in view that are written between two frames: the browser has them to lay out in the next, which should be short.
const FRAME_CELLS = 50;

export class Table {
  element;
  sort;
  descending;
  #columns;
  #onselect;
  #body;
  #rows = new Map(); // by key: {row, cells, data}
  #order = []; // keys
  #outOfView = new WeakSet(); // rows that the browser does not lay out
  #held = false;
  #selected = null;
  #rearrange = true;

  /**
   * `columns`: {key, label, title, text(row), bar(row) in 0..1, draw(cell, row), number}; `key(row)` names a row, null one
   * that cannot be chosen; `onsort()` is called when another order is wanted, `onselect(row)` when a row is chosen.
   */
  constructor({ caption, columns, key, sort, descending = true, onsort = () => {}, onselect = null }) {
    this.sort = sort;
    this.descending = descending;
    this.#columns = columns;
    this.key = key;
    this.#onselect = onselect;
    this.#body = h("tbody", { role: "rowgroup" });
    this.#body.addEventListener("contentvisibilityautostatechange", ({ target, skipped }) =>
      skipped ? this.#outOfView.add(target) : this.#outOfView.delete(target),
    );
    this.headers = new Map();
    const header = h("tr", { role: "row" }, ...columns.map((column) => this.#header(column, onsort)));
    // Roles, because some browsers take a table for none when its rows are laid out as a grid.
    const table = h("table", { role: "table" }, h("caption", { class: "unseen" }, caption), h("thead", { role: "rowgroup" }, header), this.#body);
    const widths = columns.map((column, i) => (i === 0 ? NAME_WIDTH : column.bar ? SHARE_WIDTH : column.draw ? DRAWN_WIDTH : NUMBER_WIDTH));
    table.style.minWidth = `${widths.reduce((sum, width) => sum + width)}em`; // narrower, it is scrolled
    const tracks = columns.map((column, i) => (column.number || column.draw ? `${widths[i]}em` : "minmax(0, 1fr)"));
    table.style.setProperty("--columns", tracks.join(" "));
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

  /**
   * Show these rows, some between each two frames; unless others are given meanwhile. What is pointed at or has the
   * focus is not moved; the order is made good afterwards.
   */
  async update(rows) {
    const given = new Map(rows.map((data) => [this.key(data), data]));
    const held = (this.#held || this.#body.contains(document.activeElement)) && !this.#rearrange;
    this.#rearrange = false;
    for (const [key, { row }] of this.#rows) {
      if (!given.has(key)) {
        row.remove();
        this.#rows.delete(key);
      }
    }
    const kept = held ? this.#order.filter((key) => given.has(key)) : [];
    const order = [...new Set([...kept, ...given.keys()])];
    this.#order = order;
    let written = 0;
    for (let i = 0; i < order.length; i++) {
      if (written >= FRAME_CELLS) {
        setAttribute(this.#body, "aria-busy", "true");
        await nextFrame();
        if (this.#order !== order) return;
        written = 0;
      }
      const row = this.#show(order[i], given.get(order[i]));
      if (this.#body.children[i] !== row) this.#body.insertBefore(row, this.#body.children[i] ?? null);
      if (!this.#outOfView.has(row)) written += this.#columns.length;
    }
    setAttribute(this.#body, "aria-busy", null);
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
    const cell = h("th", { scope: "col", role: "columnheader", class: column.number ? "number" : null, title: column.title ?? null });
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
      shown = { row: h("tr", { role: "row" }), cells: [], data };
      for (const column of this.#columns) {
        const kind = column.number ? "number" : null;
        const cell = column === this.#columns[0] ? h("th", { scope: "row", role: "rowheader" }) : h("td", { role: "cell", class: kind });
        shown.row.append(cell);
        shown.cells.push(column === this.#columns[0] && this.#onselect && key !== null ? this.#link(cell) : cell);
      }
      if (this.#onselect && key !== null) shown.row.addEventListener("click", () => this.#onselect(shown.data));
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
    return shown.row;
  }

  #link(cell) {
    const button = h("button", { type: "button", class: "link" }); // its click is the row's
    cell.append(button);
    return button;
  }
}
