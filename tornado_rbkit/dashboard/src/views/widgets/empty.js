// What a view shows before it has data.

import { h, setText } from "./dom.js";

/** Says why a view has no data, and has the button that starts the recording. */
export class Empty {
  #text = h("p", { role: "status" });

  /**
   * @param {object} options
   * @param {string} options.what The recording, such as "memory profile".
   * @param {"object_trace_enabled" | "cpu_profiling_enabled"} options.recorded The fact that says that it is on.
   * @param {string} options.about What the view shows once there is data.
   * @param {HTMLButtonElement} options.button
   * @param {HTMLElement[]} content The rest of the view, hidden while there is no data.
   */
  constructor({ what, recorded, about, button }, ...content) {
    this.what = what;
    this.recorded = recorded;
    this.about = about;
    this.button = button;
    this.content = content;
    for (const element of content) element.hidden = true;
    this.element = h("div", { class: "empty", hidden: true }, this.#text, button);
  }

  /** Show or hide the advice. */
  update(header, isEmpty) {
    const isFile = header.state === "file";
    const isOn = Boolean(header.facts?.[this.recorded]);
    const off = `The ${this.what} is off. ${this.about}`;
    setText(this.#text, isFile ? `This file has no ${this.what}.` : isOn ? `Waiting for the first data of the ${this.what}.` : off);
    this.button.hidden = isFile || isOn;
    this.element.hidden = !isEmpty;
    for (const element of this.content) element.hidden = isEmpty;
  }
}
