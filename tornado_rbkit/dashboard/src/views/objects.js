// The objects view: live objects created since the profile started, by class.

import { h, setText } from "./widgets/dom.js";
import { Empty } from "./widgets/empty.js";
import * as format from "./widgets/format.js";
import { Latest } from "./latest.js";
import { ask } from "./rpc.js";
import { Table } from "./widgets/table.js";

const SPARK = [96, 20]; // px

export class ObjectsView {
  element;
  refreshSeconds = 1;
  /** @type {(() => void) | undefined} Called when what the view shows was chosen anew. */
  onchange;
  #rows = new Latest();

  /** `record` is a button that starts the memory profile. */
  constructor({ record }) {
    const refresh = () => this.onchange?.();
    const number = (key, label, title, text = (row) => format.count(row[key])) => ({ key, label, title, number: true, text });
    this.table = new Table({
      caption: "Live objects by class",
      key: (row) => row.name,
      sort: "live",
      onsort: refresh,
      columns: [
        { key: "name", label: "class", text: (row) => row.name },
        number("live", "live", "created since the profile began, and not destroyed"),
        number("growth", "growth", "since Count growth from now", (row) => format.signed(row.growth)),
        number("rate", "rate", "over the last ten seconds", (row) => format.perSecond(row.rate)),
        { label: "since the start", title: "live objects, since the class was first seen", draw: (cell, row) => drawSpark(cell, row) },
        number("young", "young", "created since the last garbage collection; those within five seconds count as one"),
        number("middle", "middle", "survived one to three collections"),
        number("old", "old", "survived more than three collections"),
        number("created", "allocated", "since the profile began"),
        number("destroyed", "freed", "since the profile began"),
      ],
    });
    this.filter = h("input", {
      type: "search",
      placeholder: "class name",
      "aria-label": "Filter by class name",
      oninput: () => {
        this.table.rearrange();
        refresh();
      },
    });
    const baseline = h(
      "button",
      {
        type: "button",
        title: "growth counts from this moment",
        onclick: async () => {
          await ask("setBaseline", { process: this.process });
          refresh();
        },
      },
      "Count growth from now",
    );
    this.summary = h("span", { class: "hint" });
    this.note = h("p", { class: "note", role: "status" });
    const content = h("div", {}, h("div", { class: "bar" }, this.filter, baseline, this.summary), this.note, this.table.element);
    const about = "It lists the live objects by class: allocated since it began, and not freed.";
    this.empty = new Empty({ what: "memory profile", recorded: "object_trace_enabled", about, button: record }, content);
    this.element = h("section", { "aria-label": "Objects" }, this.empty.element, content);
  }

  /** What is chosen in the view, for the address. */
  get choices() {
    return { filter: this.filter.value, sort: this.table.order };
  }

  restore(choices) {
    this.filter.value = choices.get("filter") ?? "";
    this.table.order = choices.get("sort") ?? "";
  }

  /** Reset the view for another session. */
  forget() {
    this.#rows.cancel();
  }

  async update(header, process) {
    this.process = process;
    const { sort, descending } = this.table;
    const query = { process, filter: this.filter.value, sort, descending, limit: this.table.limit };
    await this.#rows.ask("objects", query, (data) => this.#draw(data, header));
  }

  #draw(data, header) {
    this.empty.update(header, !data.matching && !this.filter.value);
    this.table.toggle("growth", data.hasBaseline); // until then it is what is live
    this.table.update(data.rows, data.matching);
    const cut = data.matching > data.rows.length ? `, ${data.rows.length} are shown` : "";
    const strangers = data.strangers ? `; ${format.count(data.strangers)} older than the profile were destroyed` : "";
    setText(this.summary, `${format.count(data.matching)} classes${cut}; ${format.count(data.live)} live objects${strangers}`);
    const notes = [];
    if (!data.matching) notes.push(`No class has “${this.filter.value}” in its name.`);
    if (data.uncertain) notes.push("Messages are missing, so some counts are wrong: stop and start the memory profile to count anew.");
    if (data.untracked) {
      notes.push(
        `${format.count(data.most)} live objects are followed; ${format.count(data.untracked)} more are counted as created only, and their end is not known.`,
      );
    }
    setText(this.note, notes.join(" "));
  }
}

function drawSpark(cell, { trend }) {
  let svg = cell.firstChild;
  if (!svg) {
    svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${SPARK[0]} ${SPARK[1]}`);
    svg.setAttribute("class", "spark");
    svg.setAttribute("aria-hidden", "true"); // the other columns have the numbers
    svg.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
    cell.append(svg);
  }
  const most = Math.max(1, ...trend.map(([, live]) => live));
  const [start, end] = [trend[0]?.[0] ?? 0, trend.at(-1)?.[0] ?? 0];
  const points = trend.map(([time, live]) => {
    const x = SPARK[0] * (end > start ? (time - start) / (end - start) : 1);
    return `${x.toFixed(1)},${(SPARK[1] - 1 - (SPARK[1] - 2) * (live / most)).toFixed(1)}`;
  });
  svg.firstChild.setAttribute("points", points.join(" "));
}
