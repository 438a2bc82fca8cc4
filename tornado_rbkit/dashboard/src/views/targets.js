// The profilers that the server knows by name: the one in view, and the way to all of them.

import { query } from "./address.js";
import { h, isPlainClick, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";

const PATIENCE_MS = 10_000;

export class Targets {
  /** The way to all profilers, if there are several, and the name of the one in view. */
  elements;
  /** The target in view: "" for none, null until it is known. */
  target = new URLSearchParams(location.search).get("target");
  /** @type {string[]} */
  names = [];
  #all;
  #isAsking = false;
  #name = h("span", { class: "target", hidden: true });

  /** @param {{onleave: () => void}} options Called when the user goes to all profilers. */
  constructor({ onleave }) {
    const leave = (/** @type {MouseEvent} */ event) => {
      if (!isPlainClick(event)) return;
      event.preventDefault();
      history.pushState(null, "", this.#all.href); // so that the browser's Back returns to the profiler
      onleave();
    };
    this.#all = h("a", { class: "link", hidden: true, href: "", onclick: leave });
    this.elements = [this.#all, this.#name];
  }

  /** Ask the server for the names, unless an answer is awaited; return whether it answered. */
  async find() {
    if (!areListed() || this.#isAsking) return false;
    this.#isAsking = true;
    try {
      const answer = await request("targets");
      if (!answer.ok) return false; // the WebSocket is refused as well and reports why
      this.names = (await answer.json()).map((/** @type {{name: string}} */ { name }) => name);
      return true;
    } catch {
      return false; // the server is unreachable, which the connection's state shows
    } finally {
      this.#isAsking = false;
    }
  }

  /** Return whether the server has no profiler, not even an unnamed one (Jupyter before a kernel has a profiler). */
  async areAbsent() {
    if (this.names.length || !areListed()) return false;
    try {
      const answer = await request("status");
      const { targets } = answer.ok ? await answer.json() : {};
      return targets !== undefined && !Object.keys(targets).length;
    } catch {
      return false; // the server is unreachable, which the connection's state shows
    }
  }

  /**
   * Put the target in view into the page's address; return the address of its WebSocket.
   *
   * @param {string | null} name
   */
  follow(name) {
    this.target = name;
    const url = new URL(location.href);
    if (name) url.searchParams.set("target", name);
    if (url.href !== location.href) history.replaceState(null, "", url);
    const ws = new URL(`${name ? `${encodeURIComponent(name)}/` : ""}ws${query}`, location.href);
    ws.protocol = ws.protocol.replace("http", "ws");
    ws.searchParams.set("encoding", "binary"); // whatever the server's default is
    return ws.href;
  }

  /** @param {string} address Of the page with all profilers. */
  draw(address) {
    const count = this.names.length;
    this.#all.hidden = count < 2;
    this.#name.hidden = count < 2 || !this.target;
    setText(this.#all, `‹ All ${format.count(count)} profilers`);
    this.#all.href = address;
    setText(this.#name, this.target ?? "");
  }
}

/**
 * Request a document of the server; a connection that is dead without a close ends it after a while.
 *
 * @param {string} path
 */
function request(path) {
  return fetch(`${path}${query}`, { signal: AbortSignal.timeout(PATIENCE_MS) });
}

/** Return whether the server lists its profilers. */
export function areListed() {
  return "listed" in document.documentElement.dataset;
}
