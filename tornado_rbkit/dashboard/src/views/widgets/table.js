// A table that is sorted by its headers, and whose rows do not move while the user reads them.

import { h, nextFrame, setAttribute, setText } from "./dom.js";

// Minimum width of a column, in em.
const NAME_WIDTH = 15;
const WIDEST_NAME = 46; // numbers stay beside the names
const NUMBER_WIDTH = 7.2;
const SHARE_WIDTH = 10;
const DRAWN_WIDTH = 9;

// Rows shown at first, and more of them at a time.
const PAGE = 200;

// Visible cells written between two animation frames: few enough to keep the layout in the next frame short.
const FRAME_CELLS = 50;

export class Table {
  element;
  sort;
  descending;
  limit = PAGE; // rows to pass to `update`
  #columns;
  #widths; // of the columns, in em, at least
  #tracks; // the same for the layout
  #table;
  #header;
  /** @type {Set<string>} */
  #hidden = new Set(); // keys of columns
  #onselect;
  #body;
  #rows = new Map(); // by key: {row, cells, data}
  #order = []; // keys
  #outOfView = new WeakSet(); // rows that are not laid out
  #held = false;
  #selected = null;
  #rearrange = true;
  #atOnce;
  #firstOrder; // the order before the user chose one

  /**
   * `columns`: {key, label, title, text(row), bar(row) in 0..1, draw(cell, row), number, width in em, grow as its share
   * of the space that is left}; `key(row)` identifies a row, null if it cannot be chosen; `onsort()` is called when the user sorts, `onselect(row)` when a row is chosen. If
   * `atOnce`, an update is written in one task, which suits rows that all change each second.
   *
   * @param {{caption: string, columns: any[], key: (row: any) => any, sort?: string, descending?: boolean, atOnce?: boolean,
   *   onsort?: () => void, onselect?: ((row: any) => void) | null}} options
   */
  constructor({ caption, columns, key, sort, descending = true, atOnce = false, onsort = () => {}, onselect = null }) {
    this.sort = sort;
    this.descending = descending;
    this.#columns = columns;
    this.key = key;
    this.#onselect = onselect;
    this.#atOnce = atOnce;
    this.#body = h("tbody", { role: "rowgroup" });
    this.#body.addEventListener("contentvisibilityautostatechange", ({ target, skipped }) =>
      skipped ? this.#outOfView.add(target) : this.#outOfView.delete(target),
    );
    this.headers = new Map();
    const header = h("tr", { role: "row" }, ...columns.map((column) => this.#headerCell(column, onsort)));
    this.#header = header;
    // Roles, because some browsers do not treat a table with a grid layout as a table.
    const table = h("table", { role: "table" }, h("caption", { class: "unseen" }, caption), h("thead", { role: "rowgroup" }, header), this.#body);
    const widths = columns.map((column, i) => column.width ?? (i === 0 ? NAME_WIDTH : column.bar ? SHARE_WIDTH : column.draw ? DRAWN_WIDTH : NUMBER_WIDTH));
    const tracks = columns.map((column, i) =>
      column.width
        ? `minmax(${column.width}em, ${column.grow ? `${column.grow}fr` : `${column.width}em`})`
        : column.number || column.draw
          ? `${widths[i]}em`
          : i === 0 && columns.length > 1
            ? `minmax(${NAME_WIDTH}em, ${WIDEST_NAME}em)`
            : `minmax(${widths[i]}em, 1fr)`,
    );
    this.#widths = widths;
    this.#tracks = tracks;
    this.#table = table;
    this.#layOut();
    this.more = h("button", {
      type: "button",
      class: "more",
      hidden: true,
      onclick: () => {
        this.limit += PAGE;
        onsort();
      },
    });
    this.element = h(
      "div",
      {
        class: "table",
        onpointerenter: () => (this.#held = true),
        onpointerleave: () => (this.#held = false),
      },
      table,
      this.more,
    );
    this.#markSorted();
    this.#firstOrder = this.#orderText;
  }

  get #orderText() {
    return `${this.descending ? "-" : ""}${this.sort ?? ""}`;
  }

  /** The chosen order as a text for the address, "" for the first one. */
  get order() {
    return this.#orderText === this.#firstOrder ? "" : this.#orderText;
  }

  set order(text) {
    const key = text.replace(/^-/, "");
    if (!this.headers.has(key)) return; // no column has it
    this.sort = key;
    this.descending = text.startsWith("-");
    this.#markSorted();
  }

  /**
   * Show these rows, a few per animation frame; stop if other rows are passed meanwhile. While the pointer or the
   * focus is in the table the rows keep their order, and are reordered by a later update. If more rows are `matching`,
   * a button asks for them.
   */
  async update(rows, matching = rows.length) {
    this.more.hidden = matching <= rows.length;
    if (!this.more.hidden) setText(this.more, `Show ${Math.min(PAGE, matching - rows.length)} more of ${matching - rows.length}`);
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
      if (written >= FRAME_CELLS && !this.#atOnce) {
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

  /** Show the next rows in their own order, because they are different rows. */
  rearrange() {
    this.#rearrange = true;
  }

  /** Show or hide a column, such as one that has nothing of its own to say yet. */
  toggle(key, isShown) {
    if (this.#hidden.has(key) !== isShown) return;
    if (isShown) this.#hidden.delete(key);
    else this.#hidden.add(key);
    this.#layOut();
  }

  /** Lay out the columns that are shown, in all rows. */
  #layOut() {
    const isShown = ({ key }) => !this.#hidden.has(key);
    const shown = [...this.#columns.keys()].filter((i) => isShown(this.#columns[i]));
    this.#table.style.setProperty("--columns", shown.map((i) => this.#tracks[i]).join(" "));
    this.#table.style.minWidth = `${shown.reduce((sum, i) => sum + this.#widths[i], 0)}em`; // scrolls if the page is narrower
    for (const row of [this.#header, ...this.#body.children]) this.#columns.forEach((column, i) => (row.children[i].hidden = !isShown(column)));
  }

  /** Mark the row with this key, or no row. */
  select(key) {
    this.#selected = key;
    for (const [each, { row }] of this.#rows) setAttribute(row, "aria-selected", each === key ? "true" : null);
  }

  #headerCell(column, onsort) {
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
        cell.hidden = this.#hidden.has(column.key);
        shown.row.append(cell);
        shown.cells.push(column === this.#columns[0] && this.#onselect && key !== null ? this.#link(cell) : cell);
      }
      if (this.#onselect && key !== null) shown.row.addEventListener("click", () => this.#onselect?.(shown.data));
      this.#rows.set(key, shown);
      setAttribute(shown.row, "aria-selected", key === this.#selected ? "true" : null);
    }
    shown.data = data;
    this.#columns.forEach((column, i) => {
      if (column.draw) column.draw(shown.cells[i], data);
      else setText(shown.cells[i], column.text(data));
      if (!column.draw && !column.number && !column.hint) shown.cells[i].closest("th, td").title = column.text(data); // it may be cut
      if (column.bar) shown.cells[i].style.setProperty("--share", `${100 * column.bar(data)}%`);
      if (column.hint) shown.cells[i].title = column.hint(data);
    });
    return shown.row;
  }

  #link(cell) {
    const button = h("button", { type: "button", class: "link" }); // the row handles its click
    cell.append(button);
    return button;
  }
}
