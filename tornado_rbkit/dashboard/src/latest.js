// Answers that are drawn. They come when they come: one to an earlier question must never be drawn over that to a later.

import { nextFrame } from "./dom.js";
import { ask } from "./rpc.js";

/** The newest question of one part of a view. Whatever that part draws from an answer, it draws in the steps given here. */
export class Latest {
  #number = 0;

  /**
   * Ask the worker, and hand the answer to each step, a frame apart; unless another question or `cancel` came meanwhile, or
   * there is no such thing any more (null).
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

  /** Let go of what was asked: it is not wanted any more. */
  cancel() {
    this.#number++;
  }
}
