// The tables of functions: by their time, and beside an earlier time by how it changed.

import * as format from "../widgets/format.js";
import { Table } from "../widgets/table.js";

/**
 * Return the two tables.
 *
 * @param {{cell: (samples: number) => string, whole: () => number, onsort: () => void, onselect: (row: any) => void}} options
 *   `cell` returns how long samples took, `whole` the number of samples looked at.
 * @returns {{plain: Table, compared: Table}}
 */
export function functionTables({ cell, whole, onsort, onselect }) {
  const time = (key, title) => ({
    ...{ key, label: key, title, number: true },
    text: (row) => `${cell(row[key])}  ${format.percent(row[key], whole())}`,
    hint: (row) => format.plural(row[key], "sample"),
    bar: (row) => (whole() ? row[key] / whole() : 0),
  });
  const change = (key, label, title) => ({ key, label, title, number: true, text: (row) => format.points(row[key] ?? 0) });
  const name = { key: "label", label: "function", text: (row) => row.label };
  const times = [time("self", "time in the function itself"), time("total", "time in it and what it called")];
  const file = { key: "file", label: "file", text: (row) => format.place(row.file, row.line), hint: (row) => row.file };
  const changes = [
    change("selfChange", "self ±", "percentage points by which the share of the time in the function itself is larger than before"),
    change("totalChange", "total ±", "percentage points by which the share of the time in it and what it called is larger than before"),
  ];
  const options = { key: (row) => row.index, onsort, onselect };
  return {
    plain: new Table({ ...options, caption: "Functions", sort: "self", columns: [name, ...times, file] }),
    compared: new Table({ ...options, caption: "Changes of functions", sort: "selfChange", columns: [name, ...changes, ...times, file] }),
  };
}
