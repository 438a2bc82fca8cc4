// All targets of the server, of one machine or many hosts: a table that is drawn once a second, and the hosts above it.

import { hashOf, query } from "./address.js";
import { h, isPlainClick, setAttribute, setText } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { Table } from "./widgets/table.js";
import { Fleet, HISTORY_SECONDS } from "../model/fleet.js";

/**
 * @typedef {import("../model/fleet.js").Target} Target
 * @typedef {import("../model/fleet.js").Host} Host
 */

/** The view's name in the address: `#fleet?filter=…&sort=…`. */
export const FLEET = "fleet";

const POLL_SECONDS = 1;
const PATIENCE_SECONDS = 10;
const SHOWN_HOSTS = 60;
const SPARK = [96, 20]; // px
const BREAK_SECONDS = 7; // without figures
const LEAST_CPU = 10; // per cent, the height of a line of less

/** @type {Record<string, string>} */
const STATES = { connected: "live", connecting: "connecting…", disconnected: "connection lost", idle: "not watched" };
/** @type {Record<string, string>} */
const RECORDED = { memory: "memory", cpu: "CPU", allocations: "allocations" };
/** @type {Record<string, string>} */
const MOODS = { connected: "good", frozen: "bad", gone: "bad", disconnected: "bad", late: "warn", connecting: "warn" };

export class FleetView {
  element;
  isShown = false;
  #fleet = new Fleet();
  #isPolling = false;
  #polledAt = -Infinity;
  #hosts;

  /** @param {(name: string) => void} open Shows a target. */
  constructor(open) {
    const choose = () => {
      this.#remember();
      this.#draw();
    };
    this.table = new Table({ caption: "Targets", key: (row) => row.name, sort: "name", descending: false, atOnce: true, onsort: choose, columns: columns(open) });
    this.filter = h("input", {
      type: "search",
      placeholder: "host, name, process, state",
      "aria-label": "Filter targets",
      oninput: () => {
        this.table.rearrange();
        choose();
      },
    });
    this.summary = h("span", { class: "hint", role: "status" });
    this.note = h("p", { class: "note", role: "status" });
    this.#hosts = h("ul", { class: "hosts", "aria-label": "Hosts", hidden: true });
    this.element = h(
      "main",
      { class: "fleet", "aria-label": "All profilers", hidden: true },
      h("div", { class: "bar" }, h("h1", {}, "rbkit"), this.filter, this.summary),
      this.note,
      this.#hosts,
      this.table.element,
    );
    setInterval(() => this.#poll(), (POLL_SECONDS * 1000) / 4);
    addEventListener("visibilitychange", () => this.#poll());
  }

  /**
   * Show the targets, and ask for them once a second while the page is visible.
   *
   * @param {URLSearchParams} choices
   */
  show(choices) {
    this.filter.value = choices.get("filter") ?? "";
    this.table.order = choices.get("sort") ?? "";
    this.table.rearrange();
    this.isShown = true;
    this.element.hidden = false;
    this.#remember();
    this.#draw();
    this.#poll();
  }

  hide() {
    this.isShown = false;
    this.element.hidden = true;
  }

  /** The address of the view as it is. */
  get address() {
    const url = new URL(location.href);
    url.searchParams.delete("target");
    url.hash = hashOf(FLEET, { filter: this.filter.value, sort: this.table.order });
    return url.href;
  }

  /** Put what is chosen into the address, for a reload, to come back to and to share. */
  #remember() {
    if (location.href !== this.address) history.replaceState(null, "", this.address);
  }

  async #poll() {
    const now = performance.now() / 1000;
    if (!this.isShown || document.hidden || this.#isPolling || now - this.#polledAt < POLL_SECONDS) return;
    this.#isPolling = true;
    this.#polledAt = now;
    let trouble = "";
    try {
      const url = new URL(`targets${query}`, location.href);
      url.searchParams.set("fleet", "");
      const answer = await fetch(url, { signal: AbortSignal.timeout(PATIENCE_SECONDS * 1000) });
      if (answer.ok) this.#fleet.update(await answer.json(), performance.now() / 1000);
      else trouble = `The server refuses the list: ${answer.status} ${(await answer.text()).slice(0, 300)}`;
    } catch {
      trouble = "The server does not answer. The list is as old as its last answer.";
    } finally {
      this.#isPolling = false;
    }
    if (this.isShown) this.#draw(trouble);
  }

  #draw(trouble = this.note.textContent) {
    const { targets, hosts, leftOut } = this.#fleet;
    const { sort, descending, limit } = this.table;
    const { rows, matching } = this.#fleet.rows({ filter: this.filter.value, sort: sort ?? "name", descending, limit });
    this.table.update(rows, matching);
    const total = format.plural(targets.length, "profiler") + (hosts.length ? ` on ${format.plural(hosts.length, "host")}` : "");
    setText(this.summary, matching === targets.length ? total : `${format.count(matching)} of ${total}`);
    const more = leftOut ? `${format.count(leftOut)} more profilers are not shown.` : "";
    const notes = [trouble, more].filter((text, i, all) => text && all.indexOf(text) === i);
    setText(this.note, notes.join(" "));
    setText(document.querySelector("title"), `${format.plural(targets.length, "profiler")}: rbkit`);
    this.#drawHosts(hosts);
  }

  /** @param {Host[]} hosts */
  #drawHosts(hosts) {
    this.#hosts.hidden = !hosts.length;
    const shown = hosts.slice(0, SHOWN_HOSTS);
    const texts = shown.map(({ name, state, seconds, targets }) => [name, state, state === "here" ? String(targets) : `${state} for ${format.duration(seconds)}`]);
    if (hosts.length > shown.length) texts.push(["", "here", `and ${format.plural(hosts.length - shown.length, "more host")}`]);
    texts.forEach(([name, state, text], i) => {
      const item = this.#hosts.children[i] ?? this.#hosts.appendChild(this.#hostItem());
      const [label, about] = item.firstChild.children;
      setText(label, name);
      setText(about, text);
      if (item.dataset.state !== state) item.dataset.state = state;
    });
    while (this.#hosts.children.length > texts.length) this.#hosts.lastChild.remove();
  }

  #hostItem() {
    const name = h("b");
    const choose = () => {
      this.filter.value = name.textContent && `${name.textContent}~`;
      this.filter.dispatchEvent(new Event("input"));
    };
    return h("li", {}, h("button", { type: "button", title: "show its targets only", onclick: choose }, name, " ", h("span", { class: "hint" })));
  }
}

/** @param {(name: string) => void} open */
function columns(open) {
  const minutes = format.duration(HISTORY_SECONDS);
  return [
    { key: "name", label: "target", width: 13, grow: 3, draw: (/** @type {HTMLElement} */ cell, /** @type {Target} */ row) => drawName(cell, row, open) },
    { key: "state", label: "state", width: 10, grow: 2, title: "of its host, or of the connection to the profiler", text: stateText },
    { key: "process", label: "process", width: 10, grow: 2, text: processText },
    number("viewers", "viewers", 5.5, "connected to it", ({ viewers }) => format.count(viewers)),
    number("cpu", "CPU", 5, "of one core, by the whole process (Linux)", ({ cpu }) => (cpu === null ? "–" : `${format.count(cpu, cpu < 9.95 ? 1 : 0)} %`)),
    spark("cpu", `CPU, ${minutes}`),
    number("rss", "RSS", 6.5, "resident memory: physical memory that the process uses (Linux)", ({ rss }) => format.bytes(rss)),
    spark("rss", `RSS, ${minutes}`),
    { key: "recording", label: "recording", width: 8, title: "known while somebody is connected", text: (/** @type {Target} */ { recording }) => recording.map((what) => RECORDED[what] ?? what).join(", ") },
    number("rate", "MB/s", 5, "profiling data sent to this server's viewers", ({ rate }) => (rate === null ? "–" : rate === 0 ? "0" : format.count(rate / 1e6, 2))),
  ];
}

/**
 * @param {string} key
 * @param {string} label
 * @param {number} width
 * @param {string} title
 * @param {(row: Target) => string} text
 */
function number(key, label, width, title, text) {
  return { key, label, width, title, number: true, text };
}

/**
 * @param {"cpu" | "rss"} key
 * @param {string} label
 */
function spark(key, label) {
  return { label, width: 9, draw: (/** @type {HTMLElement} */ cell, /** @type {Target} */ row) => drawSpark(cell, row, key) };
}

/** @param {Target} target */
function processText({ process, pid }) {
  return [format.shortName(process), pid === null ? "" : `pid ${pid}`].filter(Boolean).join(", ");
}

/** @param {Target} target */
function stateText({ state, trouble }) {
  return trouble ? `⚠ ${trouble}` : (STATES[state] ?? state);
}

/**
 * Draw the link to a target, and mark the row's state, which is coloured.
 *
 * @param {HTMLElement} cell
 * @param {Target} target
 * @param {(name: string) => void} open
 */
function drawName(cell, { name, state, trouble }, open) {
  if (!cell.firstChild) {
    const onclick = (/** @type {MouseEvent} */ event) => {
      if (!isPlainClick(event)) return;
      event.preventDefault();
      open(name);
    };
    cell.append(h("a", { class: "link", href: addressOf(name), title: name, onclick }, name));
  }
  const row = /** @type {HTMLElement} */ (cell.closest("tr"));
  const mood = trouble ? "bad" : (MOODS[state] ?? null);
  if (row.getAttribute("data-mood") !== mood) setAttribute(row, "data-mood", mood);
}

/**
 * Return the address of a target's page.
 *
 * @param {string} name
 */
export function addressOf(name) {
  const url = new URL(location.href);
  url.searchParams.set("target", name);
  url.hash = "";
  return url.href;
}

/**
 * @param {HTMLElement} cell
 * @param {Target} target
 * @param {"cpu" | "rss"} key
 */
function drawSpark(cell, { history }, key) {
  if (!cell.firstChild) cell.append(newSpark());
  const line = /** @type {Element} */ (cell.querySelector("path"));
  const drawn = sparkPath(history, key);
  if (line.getAttribute("d") !== drawn) line.setAttribute("d", drawn);
}

function newSpark() {
  const create = (/** @type {string} */ tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  const svg = create("svg");
  svg.setAttribute("viewBox", `0 0 ${SPARK[0]} ${SPARK[1]}`);
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true"); // the column before has the number
  svg.append(create("path"));
  return svg;
}

/**
 * Return the path of a line of figures that ends at the right with the newest; interrupted where there were none.
 *
 * @param {import("../model/fleet.js").Point[]} history
 * @param {"cpu" | "rss"} key
 */
function sparkPath(history, key) {
  const points = history.filter((point) => point[key] !== null);
  const values = points.map((point) => /** @type {number} */ (point[key]));
  const end = history.at(-1)?.time ?? 0;
  const most = Math.max(key === "cpu" ? LEAST_CPU : 1, ...values);
  const least = key === "cpu" ? 0 : Math.min(...values, most * 0.9); // memory hardly varies: its line begins at 90 % or less
  return points
    .map(({ time }, i) => {
      const x = SPARK[0] * (1 - (end - time) / HISTORY_SECONDS);
      const y = SPARK[1] - 1 - ((SPARK[1] - 2) * (values[i] - least)) / (most - least);
      return `${i && time - points[i - 1].time <= BREAK_SECONDS ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    })
    .join("");
}
