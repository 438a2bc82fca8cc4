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
  #plot = null;
  #options;
  #shown = null; // {data, range, gaps, restarts}
  #box = h("div", { class: "plot" });
  #text = h("p", { class: "unseen" });

  /**
   * `series`: {label, colour, scale, draw: "bars" instead of a line, value(number) for its text}; `steps` are the
   * steps between value labels, if not decimal; `onzoom(from, to)` is called when the user marks a range.
   */
  constructor({ title, series, value, steps, onzoom, onreset }) {
    this.#options = { series, value, steps, onzoom, onreset };
    this.element = h("figure", { class: "chart" }, h("figcaption", {}, title), this.#box, this.#text);
    new ResizeObserver(() => this.#fit()).observe(this.#box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#make());
  }

  /** Show data in uPlot's form, from `range[0]` to `range[1]`. */
  update(data, range, gaps, restarts) {
    this.#shown = { data, range, gaps, restarts };
    if (this.#plot === null) this.#make();
    if (this.#plot === null) return;
    this.#plot.batch(() => {
      this.#plot.setData(data, false);
      this.#plot.setScale("x", { min: range[0], max: range[1] });
    });
    this.#describe(data);
  }

  /** Describe the chart in text for screen readers. */
  #describe(data) {
    const parts = this.#options.series.map(({ label }, i) => {
      const last = data[i + 1].findLast((value) => value !== null && value !== undefined);
      return `${label}: ${last === undefined ? "no data" : this.#value(i, last)}`;
    });
    setText(this.#text, parts.join(", "));
  }

  #value(i, value) {
    return (this.#options.series[i].value ?? this.#options.value)(value);
  }

  #make() {
    this.#plot?.destroy();
    this.#plot = null;
    const width = this.#box.clientWidth;
    if (!width || this.#shown === null) return;
    const { series, steps, onzoom, onreset } = this.#options;
    const axis = { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
    const scales = [...new Set(series.map((one) => one.scale ?? "y"))];
    this.#plot = new uPlot(
      {
        width,
        height: HEIGHT,
        cursor: { sync: { key: sync.key, setSeries: false }, drag: { setScale: false, x: true, y: false }, points: { size: 6 } },
        select: { show: true, left: 0, top: 0, width: 0, height: 0 },
        legend: { live: true },
        scales: {
          x: { time: true, auto: false },
          ...Object.fromEntries(scales.map((scale) => [scale, { range: (_, min, max) => [0, max > 0 ? max * 1.1 : 1] }])),
        },
        axes: [
          { ...axis, values: timeLabels, space: 90 },
          ...scales.map((scale, i) => ({
            ...axis,
            scale,
            ...(steps && { incrs: steps }),
            side: i ? 1 : 3,
            grid: i ? { show: false } : axis.grid,
            size: 74,
            values: (plot, ticks) => this.#ticks(plot, scale, ticks),
          })),
        ],
        series: [
          { label: "time", value: (_, x) => (x === null ? "–" : new Date(x * 1000).toLocaleTimeString("en-GB")) },
          ...series.map((one, i) => ({
            label: one.label,
            scale: one.scale ?? "y",
            stroke: colour(one.colour),
            fill: one.draw === "bars" ? colour(one.colour) : undefined,
            width: one.draw === "bars" ? 0 : 1.5,
            paths: one.draw === "bars" ? uPlot.paths.bars({ size: [0.6, 8, 2] }) : undefined,
            points: { show: one.draw === "bars" ? false : undefined, size: 4 },
            value: (_, value) => (value === null || value === undefined ? "–" : this.#value(i, value)),
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

  /** Shade the gaps where messages are missing, and draw a line where another process started. */
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
    ctx.restore();
  }

  /** Return the labels of a value axis; none while there is no data. */
  #ticks(plot, scale, ticks) {
    const { series } = this.#options;
    const own = series.map((_, i) => i).filter((i) => (series[i].scale ?? "y") === scale);
    const isKnown = own.some((i) => plot.data[i + 1].some((value) => value !== null && value !== undefined));
    return ticks.map((tick) => (isKnown ? this.#value(own[0], tick) : ""));
  }

  #fit() {
    if (this.#plot === null) this.#make();
    else if (this.#box.clientWidth) this.#plot.setSize({ width: this.#box.clientWidth, height: HEIGHT });
  }
}

function timeLabels(plot, ticks) {
  const seconds = plot.scales.x.max - plot.scales.x.min < 600;
  const options = { hour: "2-digit", minute: "2-digit", second: seconds ? "2-digit" : undefined };
  return ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString("en-GB", options));
}
