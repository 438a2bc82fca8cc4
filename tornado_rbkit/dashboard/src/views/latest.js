// Requests to the worker whose results are drawn. Only the newest result is drawn; late results are dropped.

import { nextFrame } from "./widgets/dom.js";
import { ask } from "./rpc.js";

/** The newest request of one part of a view; that part draws results only in the steps passed to `ask`. */
export class Latest {
  #number = 0;

  /**
   * Call a method of the worker and pass its result to each step, one frame apart. Stop after a newer request, after
   * `cancel`, or if the result is null (the requested object no longer exists).
   */
  async ask(method, argument, ...steps) {
    const number = ++this.#number;
    const answer = await ask(method, argument);
    for (let i = 0; i < steps.length; i++) {
      if (i) await nextFrame();
      if (answer === null || number !== this.#number) return;
      await steps[i](answer);
    }
  }

  /** Drop the result of the request under way. */
  cancel() {
    this.#number++;
  }
}
