// What went wrong, or is worth a note: shown for a while in a corner of the page.

import { h } from "./widgets/dom.js";

const SECONDS = 15;
const SHOWN = 10;

export class Alerts {
  element = h("div", { class: "alerts", role: "alert" });
  #session = 0;
  #shown = 0; // number of the last log line shown

  /** @param {string} text */
  show(text) {
    while (this.element.children.length >= SHOWN) this.element.firstChild.remove();
    const alert = h("p", {}, text, " ", h("button", { type: "button", "aria-label": "Dismiss", onclick: () => alert.remove() }, "×"));
    this.element.append(alert);
    setTimeout(() => alert.remove(), SECONDS * 1000);
  }

  /**
   * Show the new lines of a session's log.
   *
   * @param {import("./rpc.js").Header} header
   */
  showLog({ session, log }) {
    const before = this.#session === session ? this.#shown : 0;
    for (const { number, text } of log) if (number > before) this.show(text);
    this.#session = session;
    this.#shown = log.at(-1)?.number ?? before;
  }
}
