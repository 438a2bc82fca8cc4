// What is slow: the procedure that samples by the wall clock, to see where threads wait, and then by the CPU clock.

import { countdown } from "./countdown.js";
import { ask, sender } from "./rpc.js";
import { h, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";

const WALL_SECONDS = 5;

/** Places at which a thread waits that are shown. */
const STANDING_SHOWN = 2;

/** Tasks that are ready to run, on average: with fewer the event loop is not behind. */
const LEAST_READY = 1;

/** The share of its time for which an event loop may be busy: above it, tasks wait for longer than for what they await. */
const MOST_BUSY = 0.7;

/** The button that finds what is slow, and the state of the procedure. */
export class SlowFinder {
  button = h("button", { type: "button", class: "main", onclick: () => this.#find() }, "Find what is slow");
  status = h("p", { class: "hint", role: "status" });
  #runs = 0;
  #isRunning = false;
  #perform;

  /** @param {(command: string, send: import("./rpc.js").Send) => Promise<string | null>} perform Sends a command; returns why it was not carried out. */
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
    const send = await sender();
    /** @type {import("./rpc.js").Header} */
    const { facts } = await ask("header");
    const refused =
      (facts?.clock_type === "wall" ? null : await this.#perform("use_wall_time", send)) ??
      (facts?.cpu_profiling_enabled ? null : await this.#perform("start_cpu_profiling", send));
    if (isOver()) return;
    if (refused !== null) {
      this.#end(`The CPU profile was not started: ${refused}.`);
      return;
    }
    for await (const left of countdown(WALL_SECONDS)) {
      if (isOver()) return;
      setText(this.status, `Looking for another ${format.duration(left)} at where threads wait…`);
    }
    if (isOver()) return;
    const without = await this.#perform("use_cpu_time", send);
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
  const where = [h("b", {}, number), isKnown ? " wait for a lock in " : " wait at the same line of ", label, place({ file, line })];
  if (beyond === null) return where;
  return [...where, (isKnown ? "; it is held over " : ", probably for a lock that is held over ") + lineOf(beyond, label)];
}

/**
 * Return the line over which a lock is held, and the function within it, unless that is the function that waits.
 *
 * @param {Omit<import("../model/cpu/waits.js").Beyond, "threads">} beyond
 * @param {string} label The function that waits.
 */
function lineOf({ line, inner, file, innerLine }, label) {
  return `line ${line}${inner === label ? "" : `, in ${inner} ${format.shortPlace(file, innerLine)}`}`;
}

/**
 * @typedef {object} Slow What is slow, as the worker's `overview` returns it.
 * @property {import("../model/cpu/causes.js").Cause[]} causes
 * @property {number} computing Samples that compute.
 * @property {number} samples
 * @property {string[]} waiting Functions that mostly wait.
 * @property {number} inWaits Their samples.
 * @property {boolean} isByCpu
 * @property {import("../model/cpu/waits.js").Wait | null} wait
 * @property {import("../model/cpu/causes.js").Standing | null} standing
 * @property {ReturnType<typeof import("../model/cpu/tasks.js").findTaskWaits> | null} tasks
 */

/**
 * Return what is slow as sentences, each as its parts.
 *
 * @param {Slow} slow
 */
export function slowLines({ causes, computing, waiting, inWaits, isByCpu, wait, standing, tasks }) {
  /** @type {(string | Node)[][]} */
  const lines = causes.map((cause) => [h("b", {}, format.percent(cause.self, computing)), ` ${cause.label}`, place(cause), ...innerOf(cause)]);
  if (causes.length && !isByCpu) lines.push([hint("By the wall clock, which may count threads that wait.")]);
  if (waiting.length) lines.push([hint(`Without ${format.percent(inWaits, inWaits + computing)} of the CPU time, which goes into waiting in ${waiting.join(", ")}.`)]);
  if (wait) lines.push(waitSentence(wait));
  else for (const at of standing?.places.slice(0, STANDING_SHOWN) ?? []) lines.push(standingSentence(/** @type {string} */ (standing?.thread), at));
  for (const each of tasks?.waits ?? []) lines.push(taskSentence(each));
  if (tasks && tasks.ready >= LEAST_READY) lines.push([h("b", {}, tasksOnAverage(tasks.ready)), " are ready to run and wait for the event loop"]);
  if (tasks?.waits.length && tasks.busy > MOST_BUSY) lines.push([hint(`All tasks also wait for the event loop, which is busy for ${format.percent(tasks.busy, 1)} of the time.`)]);
  return lines;
}

/**
 * Return where asyncio tasks wait, for what and by whom that is awaited.
 *
 * @param {import("../model/cpu/tasks.js").TaskWait} wait
 */
function taskSentence({ tasks, at, reason, awaiter, beyond }) {
  const sentence = [h("b", {}, tasksOnAverage(tasks)), ` wait in ${at.label}`, place(at), ` ${reason}`, awaiter === null ? "" : `, awaited by ${awaiter}`];
  return beyond === null ? sentence : [...sentence, `; it is held over ${lineOf(beyond, at.label)}`];
}

/** @param {number} tasks */
function tasksOnAverage(tasks) {
  return `On average ${format.count(tasks, tasks < 10 ? 1 : 0)} asyncio tasks`;
}

/** @param {import("../model/cpu/causes.js").Cause} cause */
function innerOf({ kind, inner }) {
  if (inner === null) return [];
  const most = inner.isMost ? "mostly" : "such as";
  if (kind === "gc") return [hint(`, ${most} in ${inner.label}`), place(inner)];
  return [hint(`, in calls from this line, ${most} ${inner.label}`)];
}

/**
 * @param {string} thread
 * @param {import("../model/cpu/causes.js").Standing["places"][number]} at
 */
function standingSentence(thread, at) {
  const inner = at.inner === null ? [] : [hint(`, in ${at.inner.label}`)];
  return [h("b", {}, format.percent(at.share, 1)), ` of the time ${thread} waits at ${at.label}`, place(at), ...inner];
}

/** @param {{file: string, line: number}} at */
function place({ file, line }) {
  return h("span", { class: "hint", title: file }, file ? ` ${format.shortPlace(file, line)}` : "");
}

/** @param {string} text */
function hint(text) {
  return h("span", { class: "hint" }, text);
}
