/** Charts of the last minutes: the page keeps what the node counted at each event, and draws what it comes to. */

/* global uPlot */

import { byId, bytes, clock, compact, element, setText } from "./format.js";

const SHOWN_S = 300;
/** What is shown of them at least, while the page has not been open for so long. */
const SHOWN_FIRST_S = 60;
/** Without an event for longer than this, a line has a gap. */
const GAP_S = 3.5;
const HEIGHT_PX = 150;
const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];
/** Between two marks of an axis. */
const BINARY_STEPS = Array.from({ length: 50 }, (_, power) => 2 ** power);
const WHOLE_STEPS = Array.from({ length: 15 }, (_, power) => [1, 2, 5].map((factor) => factor * 10 ** power)).flat();

/**
 * What was counted at one event.
 * @typedef {{time: number, values: Object<string, number | null>, lags: Object<string, number>}} Sample
 */

/**
 * @typedef {object} Kind
 * @property {string} title
 * @property {(samples: Sample[]) => {label: string, values: (number | null)[]}[]} lines
 * @property {(value: number) => string} show  a value in words
 * @property {boolean} [wide]
 * @property {string} [nothing]  what is said where there are no lines
 * @property {number} [top]  the end of the axis; else above all that there is
 * @property {boolean} [isBinary]  whether its numbers are round as powers of two are
 */

const line = (label, name) => (samples) => ({ label, values: samples.map((sample) => sample.values[name]) });

/** @type {Kind[]} */
const KINDS = [
  {
    title: "Writes per second",
    lines: (samples) => [line("entries in the log", "entries")(samples)],
    show: compact,
    wide: true,
  },
  {
    title: "Reads per second",
    lines: (samples) => [line("by key", "reads")(samples), line("in ranges", "rangeItems")(samples)],
    show: compact,
    wide: true,
  },
  {
    title: "Lag, entries",
    nothing: "no replicas",
    lines: (samples) => {
      const names = [...new Set(samples.flatMap((sample) => Object.keys(sample.lags)))].sort();
      return names.slice(0, COLOURS.length).map((name) => ({
        label: name,
        values: samples.map((sample) => sample.lags[name] ?? null),
      }));
    },
    show: compact,
  },
  { title: "Log size", lines: (samples) => [line("on disk", "logBytes")(samples)], show: bytes, isBinary: true },
  {
    title: "Cache hit rate",
    lines: (samples) => [line("of reads by key", "hitRate")(samples)],
    show: (value) => `${compact(value)} %`,
    top: 100,
  },
];

export class Charts {
  constructor() {
    /** @type {Sample[]} */
    this.samples = [];
    this.last = null;
    const place = byId("charts");
    this.charts = KINDS.map((kind) => new Chart(kind, place));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.charts.forEach((chart) => chart.forget());
      this.draw();
    });
    document.addEventListener("visibilitychange", () => this.draw());
  }

  /** @param {object} status  a status event */
  add(status) {
    const last = this.last;
    this.last = status;
    const time = status.time_ms / 1000;
    const sample = { time, values: { logBytes: status.wal.bytes }, lags: {} };
    for (const node of status.cluster.nodes) {
      if (node.lag_entries !== undefined && node.state !== "superseded") {
        sample.lags[node.name] = node.lag_entries;
      }
    }
    const seconds = last === null ? Infinity : status.monotonic_s - last.monotonic_s;
    if (seconds > GAP_S || seconds <= 0 || status.uptime_s < last.uptime_s) {
      // Another process, or one that was not heard for a while. Times must rise, or the lines would go back.
      this.samples = this.samples.filter((earlier) => earlier.time < time - 0.002);
      this.samples.push({ time: time - 0.001, values: {}, lags: {} });
    } else {
      const risen = (name) => (status.counters[name] - last.counters[name]) / seconds;
      const hits = risen("cache_hits");
      const asked = hits + risen("cache_misses");
      Object.assign(sample.values, {
        entries: risen("entries"),
        reads: risen("reads"),
        rangeItems: risen("range_items"),
        hitRate: asked > 0 ? (100 * hits) / asked : null,
      });
    }
    this.samples.push(sample);
    this.samples = this.samples.filter((kept) => kept.time > time - SHOWN_S);
    this.draw();
  }

  draw() {
    if (this.samples.length > 0 && !document.hidden) {
      this.charts.forEach((chart) => chart.draw(this.samples));
    }
  }
}

class Chart {
  /** @param {Kind} kind @param {HTMLElement} place */
  constructor(kind, place) {
    this.kind = kind;
    this.plot = null;
    this.labels = null;
    this.lines = [];
    this.area = element("div", { className: "plot" });
    this.area.setAttribute("aria-hidden", "true");
    this.legend = element("ul", { className: "legend" });
    this.nothing = element("span", { className: "hint", textContent: kind.nothing ?? "" });
    const title = element("span", { className: "chart-title", textContent: kind.title });
    const caption = element("figcaption", {}, title, this.legend, this.nothing);
    place.append(element("figure", { className: kind.wide ? "chart wide-chart" : "chart" }, caption, this.area));
    new ResizeObserver(() => this.plot?.setSize({ width: this.area.clientWidth, height: HEIGHT_PX })).observe(this.area);
  }

  /** Make the plot anew with the next samples, in the colours of then. */
  forget() {
    this.plot?.destroy();
    this.plot = null;
  }

  /** @param {Sample[]} samples */
  draw(samples) {
    this.lines = this.kind.lines(samples);
    const labels = this.lines.map((each) => each.label).join("\n");
    if (labels !== this.labels) {
      this.forget();
      this.labels = labels;
      this.legend.replaceChildren(...this.lines.map((each, at) => legendItem(each.label, at)));
      this.nothing.hidden = this.lines.length > 0;
    }
    const data = [samples.map((sample) => sample.time), ...this.lines.map((each) => each.values.map((value) => value ?? null))];
    if (this.plot === null) {
      this.plot = new uPlot(this.options(), data, this.area);
    } else {
      this.plot.setData(data);
    }
    this.tell(this.plot.cursor.idx);
  }

  /** Put into the legend what was at a sample; at the last one, if there is none. */
  tell(at) {
    this.lines.forEach(({ values }, index) => {
      const value = values[at ?? values.length - 1];
      setText(this.legend.children[index].lastElementChild, value === null || value === undefined ? "–" : this.kind.show(value));
    });
  }

  options() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const { top, show, isBinary } = this.kind;
    const axis = { stroke: colour("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false } };
    const grid = { stroke: colour("--grid"), width: 1 };
    return {
      width: this.area.clientWidth,
      height: HEIGHT_PX,
      legend: { show: false },
      cursor: { sync: { key: "time" }, drag: { x: false, y: false }, points: { size: 6 } },
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)] },
      padding: [8, 26, 0, 0],
      scales: {
        x: { time: true, range: (_, first, last) => [Math.min(first, last - SHOWN_FIRST_S), last] },
        y: { range: (_, __, highest) => [0, top ?? endOf(highest ?? 0, isBinary)] },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 24,
          space: 70,
          incrs: [15, 30, 60, 120],
          values: (_, marks, __, ___, step) => marks.map((mark) => clock(1000 * mark).slice(0, step < 60 ? 8 : 5)),
        },
        {
          ...axis,
          grid,
          size: isBinary ? 66 : 48,
          space: 32,
          incrs: isBinary ? BINARY_STEPS : WHOLE_STEPS,
          values: (_, marks) => marks.map(show),
        },
      ],
      series: [
        {},
        ...this.lines.map(({ label }, at) => ({
          label,
          stroke: colour(COLOURS[at]),
          width: 1.75,
          fill: this.lines.length === 1 ? colour("--c1-fill") : undefined,
          points: { show: false },
        })),
      ],
    };
  }
}

/** A round number above all values, and never less than 1: an axis of nothing is one as well. */
function endOf(highest, isBinary) {
  if (highest <= 1) {
    return isBinary ? 1024 : 1;
  }
  const wanted = highest * 1.05;
  const base = isBinary ? 2 : 10;
  const below = base ** Math.floor(Math.log(wanted) / Math.log(base));
  return below * (isBinary ? [1, 1.5, 2] : [1, 1.5, 2, 3, 4, 5, 6, 8, 10]).find((factor) => factor * below >= wanted);
}

function legendItem(label, at) {
  const swatch = element("span", { className: `swatch swatch-${at + 1}` });
  swatch.setAttribute("aria-hidden", "true");
  return element("li", {}, swatch, element("span", { textContent: label }), " ", element("strong", { textContent: "–" }));
}
