// The time that the CPU view looks at, and the time with which it is compared; as texts of the address, too.

/** @typedef {[number, number]} Range In ms since the first sample, the end excluded. */

export class TimeChoice {
  /** @type {Range | null} Null is the whole time. */
  range = null;
  /** @type {Range | "before" | null} "before" is as long a time before the range; null is no comparison. */
  compare = null;
  isAwaited = false; // whether the next range chosen is the one to compare with

  /** The time to compare with, null for none. @returns {Range | null} */
  get comparedRange() {
    if (this.compare !== "before") return this.compare;
    if (this.range === null || this.range[0] <= 0) return null;
    const [from, to] = this.range;
    return [Math.max(0, 2 * from - to), from];
  }

  /** Take a range that was chosen; null is the whole time. @param {Range | null} range */
  choose(range) {
    if (this.isAwaited && range !== null) this.compare = range;
    else this.range = range;
    this.isAwaited = false;
  }

  /** Compare with "" (nothing), "before" or "range" (the range that is chosen next). @param {string} what */
  compareWith(what) {
    this.isAwaited = what === "range";
    this.compare = what === "before" ? "before" : null;
  }

  /** What `compareWith` was given. */
  get comparing() {
    return this.compare === "before" ? "before" : this.compare !== null || this.isAwaited ? "range" : "";
  }

  get texts() {
    return { range: textOf(this.range), compare: this.compare === "before" ? "before" : textOf(this.compare) };
  }

  /** Take texts of the address; one that is none is as if it was not there. */
  restore({ range, compare }) {
    this.range = rangeOf(range);
    this.compare = compare === "before" ? "before" : rangeOf(compare);
    this.isAwaited = false;
  }
}

/** @param {Range | null} range */
function textOf(range) {
  return range === null ? "" : range.map((ms) => Math.round(ms)).join("-");
}

/** @returns {Range | null} */
function rangeOf(text) {
  const [, from, to] = /^(\d{1,12})-(\d{1,12})$/.exec(text ?? "") ?? [];
  return Number(from) < Number(to) ? [Number(from), Number(to)] : null;
}
