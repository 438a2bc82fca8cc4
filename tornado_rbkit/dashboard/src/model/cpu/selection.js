// The samples that a view looks at, counted by stack, and the difference of two such selections.

/** Samples by stack. */
export class Selection {
  /**
   * @param {import("./stacks.js").Stacks} stacks
   * @param {Float64Array} self Samples that end in each stack.
   */
  constructor(stacks, self) {
    this.stacks = stacks;
    this.self = self;
    this.total = stacks.totals(self);
    this.samples = this.total[0];
  }

  /**
   * Return this selection and an earlier one together, each as parts of its own whole: what a graph of both has the
   * widths of. `before` is the earlier part of it.
   *
   * @param {Selection} earlier
   */
  beside(earlier) {
    const shares = (one) => one.self.map((samples) => (one.samples ? samples / one.samples : 0));
    const before = shares(earlier);
    const both = new Selection(this.stacks, shares(this).map((share, stack) => share + before[stack]));
    return Object.assign(both, { before: new Selection(this.stacks, before) });
  }

  /** Return the self and total samples of each function; a sample counts once if it recurses. */
  byFunction() {
    const { stacks } = this;
    const self = new Float64Array(stacks.functions.length);
    const total = new Float64Array(stacks.functions.length);
    for (let stack = 1; stack < this.self.length; stack++) {
      if (!this.total[stack]) continue;
      self[stacks.shown[stack]] += this.self[stack];
      if (stacks.isOutermost(stack)) total[stacks.shown[stack]] += this.total[stack];
    }
    return { self, total };
  }
}
