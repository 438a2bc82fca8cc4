// Format numbers with their units.

const counts = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Return a number with so many digits after the point. */
function fixed(value, digits) {
  return new Intl.NumberFormat("en", { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

/** @param {number | null | undefined} value @param {number} [digits] after the point */
export function count(value, digits) {
  if (value === null || value === undefined) return "–";
  return digits ? fixed(value, digits) : counts.format(value);
}

/** Return a count and its noun; the plural adds an s. */
export function plural(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

export function signed(value) {
  return (value > 0 ? "+" : value < 0 ? "−" : "±") + counts.format(Math.abs(value));
}

/** @param {number | null | undefined} value @param {number} [digits] after the point */
export function bytes(value, digits) {
  if (value === null || value === undefined) return "–";
  let unit = 0;
  let scaled = Math.abs(value);
  for (; scaled >= 1024 && unit < BYTE_UNITS.length - 1; unit++) scaled /= 1024;
  const text = digits ? fixed(scaled, digits) : unit && scaled < 100 ? tenths.format(scaled) : counts.format(scaled);
  return `${value < 0 ? "−" : ""}${text} ${BYTE_UNITS[unit]}`;
}

export function signedBytes(value) {
  return (value > 0 ? "+" : value < 0 ? "" : "±") + bytes(value);
}

export function perSecond(value) {
  const size = Math.abs(value);
  return `${value < 0 ? "−" : value > 0 ? "+" : ""}${size < 10 ? tenths.format(size) : counts.format(size)}/s`;
}

export function percent(part, whole) {
  return whole ? `${tenths.format((100 * part) / whole)} %` : "–";
}

/** Return the difference of two shares in percentage points. */
export function points(change) {
  return `${change >= 0.0005 ? "+" : change <= -0.0005 ? "−" : "±"}${tenths.format(Math.abs(100 * change))} pp`;
}

/** @param {number | null | undefined} value @param {number} [digits] after the point */
export function milliseconds(value, digits) {
  if (digits && value) return `${fixed(value, digits)} ms`;
  return value === null || value === undefined ? "–" : value < 10 ? `${value.toFixed(2)} ms` : `${counts.format(value)} ms`;
}

/** Return how long something took, in the unit that suits it. */
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms && ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${counts.format(ms)} ms`;
  return ms < 100_000 ? `${(ms / 1000).toFixed(2)} s` : `${counts.format(ms / 1000)} s`;
}

export function clock(ms) {
  return ms === null || ms === undefined ? "–" : new Date(ms).toLocaleTimeString("en-GB");
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, seconds).toFixed(0)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Return an object's id as rbkit's tools write it. */
export function objectId(id) {
  return `0x${id.toString(16)}`;
}

/** Return a process's name without the folders of its program. */
export function shortName(name) {
  return name.replace(/^\S*\/(?=[^/\s])/, "");
}

/** Return the end of a path and the line number. */
export function place(file, line) {
  if (!file) return "";
  const parts = file.split("/");
  return `${parts.length > 3 ? `…/${parts.slice(-2).join("/")}` : file}${line ? `:${line}` : ""}`;
}

/** Return the name of a file, with its folder if many have the same name, and the line number. */
export function shortPlace(file, line) {
  return file ? `${/([^\\/]+[\\/])?__(init|main)__\.py$/.exec(file)?.[0] ?? file.split(/[\\/]/).at(-1)}:${line}` : "";
}
