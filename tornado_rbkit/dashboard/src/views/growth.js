// What grows: the procedure that takes two snapshots with a pause between them, and its answer in sentences.

import { countdown } from "./countdown.js";
import { ask, sender } from "./rpc.js";
import { h, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";

const PAUSE_SECONDS = 20;
const MOST_SECONDS = 3600;
const PATIENCE_SECONDS = 60; // for a snapshot of which nothing arrives
const POLL_MS = 200;

/** Objects per second; below it the growth is told in bytes. */
const LEAST_RATE = 0.1;

/** The button that finds what grows, and its options. */
export class GrowthFinder {
  element;
  /** Ends the procedure; null when it does not run. @type {AbortController | null} */
  #stopping = null;

  /** `onfound(before, after)` is called with the numbers of the two snapshots. */
  constructor({ onfound }) {
    this.onfound = onfound;
    this.button = h("button", { type: "button", class: "main", onclick: () => this.find() }, "Find what grows");
    this.seconds = h("input", { type: "number", min: 1, max: MOST_SECONDS, value: PAUSE_SECONDS, "aria-label": "Seconds between the snapshots" });
    this.collect = h("input", { type: "checkbox", checked: true, "aria-label": "Collect first" });
    this.stop = h("button", { type: "button", hidden: true, onclick: () => this.#stopping?.abort() }, "Stop");
    this.status = h("span", { class: "hint growth-status", role: "status" });
    this.element = h(
      "span",
      { class: "bar" },
      this.button,
      h("label", {}, "in ", this.seconds, " s"),
      h("label", { title: "run the garbage collector before each snapshot, so that garbage is not counted" }, this.collect, " Collect first"),
      this.stop,
      this.status,
    );
  }

  /** Collect garbage if the user wants it; return why it was refused, or null. */
  async collectFirst(send) {
    return this.collect.checked ? send("trigger_gc") : null;
  }

  /** End the procedure. */
  forget() {
    this.#stopping?.abort();
  }

  /** Take two snapshots with a pause between them, unless this is under way already. */
  async find() {
    if (this.#stopping !== null || this.button.getAttribute("aria-disabled")) return;
    const { signal } = (this.#stopping = new AbortController());
    const stopped = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    this.stop.hidden = false;
    try {
      const send = await Promise.race([stopped, sender()]);
      const before = await Promise.race([stopped, this.#take("first", send, signal)]);
      await Promise.race([stopped, this.#pause(signal)]);
      const after = await Promise.race([stopped, this.#take("second", send, signal)]);
      setText(this.status, "");
      this.onfound(before, after);
    } catch (error) {
      setText(this.status, signal.aborted ? "Stopped." : /** @type {Error} */ (error).message);
    } finally {
      this.#stopping = null;
      this.stop.hidden = true;
    }
  }

  /** Take a snapshot, unless the procedure is stopped before, and return its number. Throws an error that says why there is none. */
  async #take(which, send, signal) {
    const known = new Set((await ask("snapshots")).list.map(({ number }) => number));
    setText(this.status, `Collecting garbage before the ${which} snapshot…`);
    const refused = await this.collectFirst(send);
    signal.throwIfAborted();
    setText(this.status, `Taking the ${which} snapshot…${refused === null ? "" : ` Garbage was not collected: ${refused}.`}`);
    const error = await send("objectspace_snapshot");
    if (error !== null) throw new Error(`The ${which} snapshot was not taken: ${error}.`);
    for (let waited = 0; waited < PATIENCE_SECONDS * 1000; waited += POLL_MS) {
      const { list, incoming } = await ask("snapshots");
      const found = list.find(({ number }) => !known.has(number));
      if (found !== undefined) return found.number;
      if (incoming.length) waited = 0;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    throw new Error(`Nothing of the ${which} snapshot arrived.`);
  }

  async #pause(signal) {
    const seconds = Math.min(MOST_SECONDS, Math.max(1, Number(this.seconds.value) || PAUSE_SECONDS));
    for await (const left of countdown(seconds)) {
      signal.throwIfAborted();
      setText(this.status, `Letting the program run for another ${format.duration(left)}…`);
    }
    signal.throwIfAborted();
  }
}

/** The ranked suspects of a comparison; `onopen(id)` is called for an object of a suspect. */
export class Suspects {
  element = h("section", { class: "suspects", hidden: true, "aria-label": "What grows" });

  constructor({ onopen }) {
    this.onopen = onopen;
  }

  hide() {
    this.element.hidden = true;
  }

  show({ suspects, total, seconds }) {
    this.element.hidden = false;
    const title = `What grew in ${format.duration(seconds)}: ${suspects.length ? "the most retained first" : "nothing"}`;
    this.element.replaceChildren(
      h("h3", {}, title),
      h("ol", {}, ...suspects.map((one) => this.#item(one, seconds))),
      h("p", { class: "hint" }, `All objects together: ${format.signedBytes(total)}.`),
    );
  }

  #item(one, seconds) {
    const { path, name, size } = one.evidence;
    return h(
      "li",
      {},
      h("p", {}, ...suspectSentence(one)),
      h(
        "p",
        { class: "hint" },
        `${format.signed(one.countGrowth)} ${one.countGrowth === 1 ? "object" : "objects"} and ${format.signedBytes(one.retainedGrowth)} in ${format.duration(seconds)}`,
        one.also.length ? `, with ${one.also.map(countedName).join(" and ")}` : "",
        one.unreachable ? `; ${format.count(one.unreachable)} unreachable` : "",
        one.unheld ? `; only running code or C code holds the ${one.unheld}` : "",
        "; such as ",
        h("button", { type: "button", class: "link", onclick: () => this.onopen(one.id) }, path),
        ` → ${name} ${format.bytes(size)}`,
      ),
    );
  }
}

/** Return a suspect as the parts of a sentence. */
export function suspectSentence(one) {
  const made = one.file ? [one.isFrame ? ", at " : ", made at ", h("span", { title: `${one.file}:${one.line}` }, format.shortPlace(one.file, one.line))] : [];
  const held = one.holder === null ? [one.isFrame ? ` that ${one.count === 1 ? "has" : "have"} not ended` : " that no other object holds"] : [" in ", h("code", {}, one.holder)];
  const rate = one.perSecond >= LEAST_RATE ? format.perSecond(one.perSecond) : `${format.signedBytes(one.bytesPerSecond)}/s`;
  return [h("b", {}, countedName(one)), ...held, `, ${format.bytes(one.retained)} retained, ${rate}`, ...made];
}

function countedName({ count, what, isFunction, isFrame }) {
  if (isFrame) return `${format.plural(count, "call")} of ${what}`;
  if (isFunction) return format.plural(count, what.includes("<locals>") ? "closure" : "function");
  if (what === "method") return format.plural(count, "bound method");
  return `${format.count(count)} ${what} object${count === 1 ? "" : "s"}`;
}
