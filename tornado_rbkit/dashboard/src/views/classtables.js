// The rows of a snapshot as a table: by class, or by the place where objects are made; alone, or compared with another.

import * as format from "./widgets/format.js";
import { Table } from "./widgets/table.js";

const UNREACHABLE = "of them, those that no known root reaches: only a cycle refers to them, and the collector frees them unless something outside the snapshot holds them";

/** @typedef {"class" | "site"} By */

/**
 * Return a table of a snapshot's rows.
 *
 * @param {By} by
 * @param {boolean} isCompared Whether the rows are differences.
 * @param {{onsort: () => void, onselect: (name: string) => void}} on
 */
export function classTable(by, isCompared, { onsort, onselect }) {
  const what = by === "class" ? "Classes" : "Places where objects are made";
  return new Table({
    caption: isCompared ? `${what}, compared with the earlier snapshot` : `${what} in the snapshot`,
    sort: by === "class" ? "retained" : "bytes",
    columns: by === "class" ? [NAME, ...(isCompared ? CLASS_GROWTH : CLASS)] : [PLACE, ...(isCompared ? SITE_GROWTH : SITE), KIND],
    key: (row) => row.name,
    onsort,
    onselect: (row) => onselect(row.name),
  });
}

/**
 * @param {string} key
 * @param {string} label
 * @param {string} title
 * @param {(value: number) => string} text
 * @param {number} [width] In em, for a label that needs more than a number does.
 */
function number(key, label, title, text, width) {
  return { key, label, title, width, number: true, text: (/** @type {any} */ row) => text(row[key]) };
}

const NAME = { key: "name", label: "class", text: (/** @type {any} */ row) => row.name };
const CLASS = [
  number("count", "objects", "how many", format.count),
  number("bytes", "size", "of all these objects, without what they refer to", format.bytes),
  number("retained", "retained", "what would be freed with them: their size, and what only they hold", format.bytes),
  number("unreachable", "unreachable", UNREACHABLE, format.count, 8.5),
];
const CLASS_GROWTH = [
  number("retained", "retained growth", "more than before would be freed with them", format.signedBytes),
  number("count", "growth", "objects more than before", format.signed),
  number("bytes", "size growth", "bytes more than before", format.signedBytes),
  number("appeared", "new", "objects that did not exist before", format.count),
  number("gone", "gone", "objects that no longer exist", format.count),
  number("after", "now", "objects in total", format.count),
  number("unreachable", "unreachable", UNREACHABLE, format.count, 8.5),
];

const PLACE = {
  key: "name",
  label: "made at",
  text: (/** @type {any} */ row) => (row.file ? format.place(row.file, row.line) : row.name),
  hint: (/** @type {any} */ row) => row.name,
};
const KIND = { key: "kind", label: "most are", text: (/** @type {any} */ row) => row.kind };
const SITE = [number("count", "objects", "how many", format.count), number("bytes", "size", "of all these objects, without what they refer to", format.bytes)];
const SITE_GROWTH = [
  number("bytes", "size growth", "bytes more than before", format.signedBytes),
  number("count", "growth", "objects more than before", format.signed),
  number("after", "now", "objects in total", format.count),
];
