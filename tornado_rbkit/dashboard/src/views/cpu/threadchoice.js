// The choice of a thread or of an asyncio task.

import { h, setText } from "../widgets/dom.js";
import * as format from "../widgets/format.js";

export class ThreadChoice {
  element;
  hasTasks = false;
  #wanted = ""; // by the address, until there is one

  /** `onchange()` is called when the user chooses another one. */
  constructor({ onchange }) {
    const choose = () => {
      this.#wanted = "";
      onchange();
    };
    this.element = h("select", { "aria-label": "Thread", onchange: choose });
  }

  /** "thread ID", "task NAME", or "" for all. */
  get value() {
    return this.element.value || this.#wanted;
  }

  set value(text) {
    this.#wanted = text;
  }

  /** The same for the worker: an id or a name, null for all. */
  get query() {
    const [, kind, name] = /^(thread|task) (.*)$/s.exec(this.value) ?? [];
    return { thread: kind === "thread" ? name : null, task: kind === "task" ? name : null };
  }

  draw({ threads, tasks }) {
    const all = threads.reduce((sum, { samples }) => sum + samples, 0);
    const text = (name, samples) => `${name} (${format.percent(samples, all)})`;
    const options = [
      ["", "all"],
      ...threads.map(({ id, title, samples }) => [`thread ${id}`, text(title, samples)]),
      ...tasks.map(({ name, samples }) => [`task ${name}`, text(`task ${name}`, samples)]),
    ];
    const chosen = this.value;
    options.forEach(([value, label], i) => {
      const option = this.element.options[i] ?? this.element.appendChild(h("option"));
      option.value = value;
      setText(option, label);
    });
    while (this.element.options.length > options.length) this.element.lastChild.remove();
    const isThere = options.some(([value]) => value === chosen);
    this.element.value = isThere ? chosen : "";
    if (isThere) this.#wanted = "";
    this.hasTasks = tasks.length > 0;
  }
}
