// @ts-check
// What is slow: the procedure that samples by the wall clock, to see where threads wait, and then by the CPU clock.

import { ask } from "./rpc.js";
import { h, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";

const WALL_SECONDS = 5;

/** The button that finds what is slow, and the state of the procedure. */
export class SlowFinder {
  button = h("button", { type: "button", class: "main", onclick: () => this.#find() }, "Find what is slow");
  status = h("p", { class: "hint", role: "status" });
  #runs = 0;
  #isRunning = false;
  #perform;

  /** @param {(command: string) => Promise<string | null>} perform Sends a command; returns why it was not carried out. */
  constructor(perform) {
    this.#perform = perform;
  }

  /** End the procedure. */
  forget() {
    this.#runs++;
    this.#end("");
  }

  async #find() {
    if (this.#isRunning || this.button.getAttribute("aria-disabled")) return;
    this.#isRunning = true;
    const run = ++this.#runs;
    const isOver = () => run !== this.#runs;
    /** @type {import("./rpc.js").Header} */
    const { facts } = await ask("header");
    const refused =
      (facts?.clock_type === "wall" ? null : await this.#perform("use_wall_time")) ??
      (facts?.cpu_profiling_enabled ? null : await this.#perform("start_cpu_profiling"));
    if (isOver()) return;
    if (refused !== null) {
      this.#end(`The CPU profile was not started: ${refused}.`);
      return;
    }
    for (let left = WALL_SECONDS; left > 0; left--) {
      setText(this.status, `Looking for another ${format.duration(left)} at where threads wait…`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      if (isOver()) return;
    }
    const without = await this.#perform("use_cpu_time");
    if (!isOver()) this.#end(without === null ? "" : `The CPU clock was not chosen: ${without}.`);
  }

  /** @param {string} text */
  #end(text) {
    this.#isRunning = false;
    setText(this.status, text);
  }
}

/**
 * Return where threads wait for one another as the parts of a sentence.
 *
 * @param {import("../model/cpu/waits.js").Wait} wait
 */
export function waitSentence({ label, file, line, threads, isKnown, beyond }) {
  const number = `${format.count(threads, 1)} threads`;
  const place = h("span", { class: "hint", title: file }, `${file.split("/").at(-1)}:${line}`);
  const where = [h("b", {}, number), isKnown ? " wait for a lock in " : " wait at the same line of ", `${label} `, place];
  if (beyond === null) return where;
  const inner = beyond.inner === label ? "" : `, in ${beyond.inner} ${beyond.file.split("/").at(-1)}:${beyond.innerLine}`;
  return [...where, isKnown ? `; it is held over line ${beyond.line}${inner}` : `, probably for a lock that is held over line ${beyond.line}${inner}`];
}
