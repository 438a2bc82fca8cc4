// The list of the snapshots, each with buttons to show, save and remove it.

import { h, save, setAttribute } from "./widgets/dom.js";
import * as format from "./widgets/format.js";
import { ask } from "./rpc.js";

/**
 * @typedef {import("./rpc.js").Header} Header
 * @typedef {Omit<ReturnType<import("../model/snapshots.js").Snapshot["summary"]>, "number"> & {number: number, from: string | null}} Summary
 */

export class SnapshotList {
  element = h("ul", { class: "snapshots", "aria-label": "Snapshots" });
  #on;

  /** @param {{show: (number: number) => void, removed: () => void}} on */
  constructor(on) {
    this.#on = on;
  }

  /**
   * Draw the list anew.
   *
   * @param {Summary[]} list
   * @param {Header} header
   */
  draw(list, header) {
    this.element.replaceChildren(
      ...list.map((one) => {
        const old = header.processes.length > 1 && one.process !== header.processes.at(-1)?.number;
        const part = one.ending === null ? "" : `, incomplete: ${format.count(one.objects)} of ${format.count(one.expected)} arrived, ${one.ending}`;
        const omitted = one.omitted ? `, ${format.count(one.omitted)} more are left out: more than this page can hold` : "";
        const unreadable = one.unreadable ? `, ${format.count(one.unreadable)} more could not be read` : "";
        const origin = one.from ? `, from ${one.from}` : old ? ", of an earlier process" : "";
        return h(
          "li",
          {},
          h(
            "button",
            { type: "button", "data-number": one.number, onclick: () => this.#on.show(one.number) },
            h("b", {}, `Snapshot ${one.number}`),
            ` ${format.clock(one.time)}: ${format.count(one.objects)} objects, ${format.bytes(one.bytes)}${part}${omitted}${unreadable}${origin}`,
          ),
          h("button", { type: "button", title: "save as a file", "aria-label": `Save snapshot ${one.number}`, onclick: () => this.#save(one) }, "Save"),
          h("button", { type: "button", title: "remove from the page", "aria-label": `Remove snapshot ${one.number}`, onclick: () => this.#remove(one) }, "Remove"),
        );
      }),
    );
  }

  /**
   * Mark the snapshot in view.
   *
   * @param {number | null} number
   */
  mark(number) {
    for (const button of this.element.querySelectorAll("[data-number]")) setAttribute(button, "aria-pressed", String(Number(button.dataset.number) === number));
  }

  /** @param {Summary} one */
  async #save(one) {
    const file = await ask("snapshotFile", { number: one.number });
    if (file !== null) save(file, `snapshot-${one.number}.rbkit`);
  }

  /** @param {Summary} one */
  async #remove(one) {
    await ask("removeSnapshot", { number: one.number });
    this.#on.removed();
  }
}
