// Charts over time that share a cursor and a range, and mark missing data.

import uPlot from "uplot";
import { h, setText } from "./dom.js";

const HEIGHT = 170;
const sync = uPlot.sync("time");

/** Return a colour of the style sheet. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export class Chart {
  element;
  /** @type {uPlot | null} */
  #plot = null;
  #options;
  /** @type {any} */
  #shown = null; // {data, range, gaps, restarts, snapshots}
  #fits = false; // whether the value axis fits the data instead of beginning at 0
  #box = h("div", { class: "plot" });
  #text = h("p", { class: "unseen" });

  /**
   * `series`: {label, colour, draw: "bars" instead of a line}; `value(number, digits)` returns the text of a value, with
   * the usual number of digits if none is given; `steps` are the steps between value labels, if not decimal;
   * `onzoom(from, to)` is called when the user marks a range.
   *
   * @param {{title: string, series: {label: string, colour: string, draw?: "bars"}[],
   *   value: (value: any, digits?: number) => string, steps?: number[], onzoom: (from: number, to: number) => void,
   *   onreset: () => void}} options
   */
  constructor({ title, series, value, steps, onzoom, onreset }) {
    this.#options = { series, value, steps, onzoom, onreset };
    this.element = h("figure", { class: "chart" }, h("figcaption", {}, title), this.#box, this.#text);
    new ResizeObserver(() => this.#fit()).observe(this.#box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#make());
  }

  /** Show data in uPlot's form, from `range[0]` to `range[1]`. */
  update(data, range, { gaps, restarts, snapshots }, fits) {
    this.#shown = { data, range, gaps, restarts, snapshots };
    this.#fits = fits;
    if (this.#plot === null) this.#make();
    const plot = this.#plot;
    if (plot === null) return;
    plot.batch(() => {
      plot.setData(data, false);
      plot.setScale("x", { min: range[0], max: range[1] });
    });
    plot.setLegend({ idx: /** @type {any} */ (plot.cursor.idx ?? null) }, false); // uPlot writes it anew only when the pointer moves
    this.#describe(data);
  }

  /**
   * Change the names of the series.
   *
   * @param {string[]} labels
   */
  rename(labels) {
    const { series } = this.#options;
    if (series.every(({ label }, i) => label === labels[i])) return;
    series.forEach((one, i) => (one.label = labels[i]));
    this.#make();
  }

  /** Describe the chart in text for screen readers. */
  #describe(data) {
    const parts = this.#options.series.map(({ label }, i) => {
      const last = lastOf(data[i + 1]);
      return `${label}: ${last === undefined ? "no data" : this.#options.value(last)}`;
    });
    setText(this.#text, parts.join(", "));
  }

  /** Return the text of a value in the legend; of the last one while the pointer is elsewhere. */
  #legend(plot, i, value) {
    const shown = plot.cursor.idx === null || plot.cursor.idx === undefined ? lastOf(plot.data[i + 1]) : value;
    return isKnown(shown) ? this.#options.value(shown) : "–";
  }

  #make() {
    this.#plot?.destroy();
    this.#plot = null;
    const width = this.#box.clientWidth;
    if (!width || this.#shown === null) return;
    const { series, steps, onzoom, onreset } = this.#options;
    const axis = { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
    this.#plot = new uPlot(
      {
        width,
        height: HEIGHT,
        cursor: { sync: { key: sync.key, setSeries: false }, drag: { setScale: false, x: true, y: false }, points: { size: 6 } },
        select: { show: true, left: 0, top: 0, width: 0, height: 0 },
        legend: { live: true },
        scales: {
          x: { time: true, auto: false },
          y: { range: (_, min, max) => this.#valueRange(min, max) },
        },
        axes: [
          { ...axis, values: timeLabels, space: 90 },
          { ...axis, scale: "y", ...(steps && { incrs: steps }), size: 74, values: (plot, ticks) => this.#ticks(plot, ticks) },
        ],
        series: [
          { label: "time", value: (_, x) => (x === null ? "–" : new Date(x * 1000).toLocaleTimeString("en-GB")) },
          ...series.map((one, i) => ({
            label: one.label,
            scale: "y",
            stroke: colour(one.colour),
            fill: one.draw === "bars" ? colour(one.colour) : undefined,
            width: one.draw === "bars" ? 0 : 1.5,
            paths: one.draw === "bars" ? uPlot.paths.bars?.({ size: [0.6, 8, 2] }) : undefined,
            points: one.draw === "bars" ? { show: false } : { show: false, size: 5, fill: colour(one.colour), filter: lonePoints },
            value: (plot, value) => this.#legend(plot, i, value),
          })),
        ],
        hooks: {
          drawClear: [(plot) => this.#drawMissing(plot)],
          setSelect: [
            (plot) => {
              if (plot.select.width < 4) return;
              const [from, to] = [plot.select.left, plot.select.left + plot.select.width].map((left) => plot.posToVal(left, "x"));
              plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              onzoom(from, to);
            },
          ],
        },
      },
      this.#shown.data,
      this.#box,
    );
    this.#plot.over.addEventListener("dblclick", onreset);
    this.#plot.setScale("x", { min: this.#shown.range[0], max: this.#shown.range[1] });
  }

  /** Shade the gaps where messages are missing; draw a line where another process started, and at each snapshot. */
  #drawMissing(plot) {
    const { ctx, bbox } = plot;
    const at = (time) => Math.min(Math.max(plot.valToPos(time, "x", true), bbox.left), bbox.left + bbox.width);
    ctx.save();
    ctx.fillStyle = colour("gap");
    for (const [from, to] of this.#shown.gaps) {
      const left = at(from);
      ctx.fillRect(left, bbox.top, Math.max(2 * devicePixelRatio, at(to) - left), bbox.height);
    }
    ctx.fillStyle = colour("restart");
    for (const time of this.#shown.restarts) {
      ctx.fillRect(at(time), bbox.top, 2 * devicePixelRatio, bbox.height);
    }
    ctx.fillStyle = colour("accent");
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    for (const { number, time } of this.#shown.snapshots) {
      ctx.fillRect(at(time), bbox.top, devicePixelRatio, bbox.height);
      ctx.fillText(`snapshot ${number}`, at(time) + 4 * devicePixelRatio, bbox.top + 11 * devicePixelRatio);
    }
    ctx.restore();
  }

  /** @returns {[number, number]} */
  #valueRange(min, max) {
    if (!isKnown(max)) return [0, 1];
    const room = 0.1 * (this.#fits ? max - min || Math.abs(max) || 1 : max || 1);
    return this.#fits ? [min - room, max + room] : [0, max + room];
  }

  /** Return the labels of the value axis, with as many digits as make them differ; none while there is no data. */
  #ticks(plot, ticks) {
    const { value } = this.#options;
    if (!plot.data.slice(1).some((values) => values.some(isKnown))) return ticks.map(() => "");
    const labels = [undefined, 1, 2, 3, 4].map((digits) => ticks.map((tick) => value(tick, digits)));
    return labels.find((some) => new Set(some).size === ticks.length) ?? labels[0];
  }

  #fit() {
    if (this.#plot === null) this.#make();
    else if (this.#box.clientWidth) this.#plot.setSize({ width: this.#box.clientWidth, height: HEIGHT });
  }
}

function isKnown(value) {
  return value !== null && value !== undefined;
}

function lastOf(values) {
  return values.findLast(isKnown);
}

/** Return the indexes of the points that no line reaches: those between unknown values. */
function lonePoints(plot, i) {
  const values = plot.data[i];
  return values.flatMap((value, at) => (isKnown(value) && !isKnown(values[at - 1]) && !isKnown(values[at + 1]) ? [at] : []));
}

function timeLabels(plot, ticks) {
  const seconds = plot.scales.x.max - plot.scales.x.min < 600;
  /** @type {Intl.DateTimeFormatOptions} */
  const options = { hour: "2-digit", minute: "2-digit", second: seconds ? "2-digit" : undefined };
  return ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString("en-GB", options));
}
