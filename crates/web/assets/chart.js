/*
 * The stacked chart of watts over time. uPlot draws the axes, follows the pointer and selects a
 * range to zoom; the layers are painted here, because they are steps: a value is the mean of its
 * step, a gap has no area, and the upper edge is the measured power. A click picks a container.
 *
 * Keys: arrows move the cursor, + and - zoom, Escape or 0 shows the whole range, Enter picks the
 * largest container at the cursor.
 */

import { clock, percent, plusMinus, withUnit } from "./format.js";
import { element } from "./table.js";

/** Colours that the painter needs, as custom properties of the style sheet. */
const COLOURS = ["fg", "muted", "line", "card", "band", "gpu", "idle", "awake", "system", "unattributed", "retired", "other"];

/** Containers from this slot on repeat the colours with hatching. */
const PLAIN_SLOTS = 6;

/** Pixels that the pointer moves before a click becomes a selection. */
const DRAG = 6;

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => [name, style.getPropertyValue(`--${name}`).trim()];
  const slots = Array.from({ length: PLAIN_SLOTS }, (_, slot) => named(`c${slot}`));
  return Object.fromEntries([...COLOURS.map(named), ...slots]);
}

/** A colour with diagonal lines in that of the background. */
function hatched(context, colour, background, ratio) {
  const size = Math.round(6 * ratio);
  const tile = document.createElement("canvas");
  tile.width = tile.height = size;
  const ink = tile.getContext("2d");
  ink.fillStyle = colour;
  ink.fillRect(0, 0, size, size);
  ink.strokeStyle = background;
  ink.lineWidth = ratio;
  for (const offset of [-size, 0, size]) {
    ink.moveTo(offset, size);
    ink.lineTo(offset + size, 0);
  }
  ink.stroke();
  return context.createPattern(tile, "repeat");
}

/** The labels of an axis of watts: one unit and one precision for all of them. */
function wattLabels(values) {
  const top = Math.max(...values.filter((value) => value !== null), 0);
  const [factor, unit] = top >= 1000 ? [1000, "kW"] : top >= 1 ? [1, "W"] : [0.001, "mW"];
  const known = values.filter((value) => value !== null);
  const step = known.length > 1 ? Math.abs(known[1] - known[0]) / factor : 1;
  const decimals = Math.min(3, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)));
  return values.map((value) => (value === null ? null : `${(value / factor).toFixed(decimals)} ${unit}`));
}

/** The stacked chart. */
export class StackChart {
  #box;
  #tip;
  #live;
  #page;
  #plot = null;
  #colours = readColours();
  #patterns = new Map();
  #columns = [];
  /**
   * From the bottom: `{name, swatch, colour, slot, pick, watts(column)}`; a container has a `slot`
   * for its colour and its key in `pick`, another layer the name of its `colour`.
   */
  #layers = [];
  /** For each layer the upper edge in every column. */
  #tops = [];
  #step = 1;
  #seconds = 900;
  #events = [];
  #band = true;
  #zoom = null;
  /** The column that the keyboard has moved the cursor to. */
  #place = null;

  /**
   * `box` is the element to draw in, `tip` the one for the values under the pointer, `live` the one
   * that a screen reader reads aloud. `page` takes `onPick(key)` and `onZoom(isZoomed)`.
   */
  constructor(box, tip, live, page) {
    this.#box = box;
    this.#tip = tip;
    this.#live = live;
    this.#page = page;
    box.addEventListener("keydown", (event) => this.#onKey(event));
    box.addEventListener("blur", () => this.#leave());
    new ResizeObserver(() => this.#resize()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#recolour());
  }

  /** True if the library that draws the axes was loaded. */
  static get isAvailable() {
    return typeof uPlot !== "undefined";
  }

  /**
   * Shows columns of History. `chart`: `{columns, layers, step, seconds, events, band}`; `band`
   * says whether the layers together are the host, whose line and uncertainty are then drawn.
   */
  show(chart) {
    this.#columns = chart.columns;
    this.#layers = chart.layers;
    this.#step = chart.step;
    this.#seconds = chart.seconds;
    this.#events = chart.events;
    this.#band = chart.band;
    this.#stack();
    const first = this.#columns[0]?.time ?? Infinity;
    if (this.#zoom && this.#zoom[1] <= first) this.#setZoom(null);
    const data = [this.#columns.map(({ time }) => time), this.#columns.map(({ host }) => host)];
    if (this.#columns.length > 0 && this.#plot) this.#plot.setData(data);
    else if (this.#columns.length > 0 && StackChart.isAvailable) this.#create(data);
    this.#showTip();
  }

  /** Shows the whole range again. */
  resetZoom() {
    this.#setZoom(null);
    this.#redraw();
  }

  #stack() {
    let base = new Float64Array(this.#columns.length);
    this.#tops = this.#layers.map((layer) => {
      const top = Float64Array.from(this.#columns, (column, at) => {
        return base[at] + (column.host === null ? 0 : layer.watts(column));
      });
      base = top;
      return top;
    });
  }

  #create(data) {
    const muted = () => this.#colours.muted;
    const line = { stroke: () => this.#colours.line, width: 1 };
    const axis = { stroke: muted, font: "12px system-ui, sans-serif", grid: line, ticks: line };
    const times = (_, splits, __, ___, step) => splits.map((at) => (at === null ? null : clock(at, step < 60)));
    const options = {
      ...this.#size(),
      legend: { show: false },
      series: [{}, { label: "host", stroke: "transparent", paths: () => null, points: { show: false } }],
      scales: { x: { time: true, range: () => this.#range() }, y: { range: () => [0, this.#highest()] } },
      axes: [
        { ...axis, space: 80, incrs: [1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200], values: times },
        { ...axis, size: 64, values: (_, splits) => wattLabels(splits) },
      ],
      cursor: {
        y: false,
        points: { show: false },
        drag: { x: true, y: false, setScale: false, dist: DRAG },
        bind: { dblclick: () => () => this.resetZoom() },
      },
      hooks: {
        drawAxes: [(plot) => this.#paint(plot)],
        setCursor: [() => this.#showTip()],
        setSelect: [(plot) => this.#onSelect(plot)],
      },
    };
    this.#plot = new uPlot(options, data, this.#box);
    this.#watchClicks(this.#plot.over);
  }

  #size() {
    return { width: Math.max(120, this.#box.clientWidth), height: Math.max(160, this.#box.clientHeight) };
  }

  #resize() {
    const { width, height } = this.#size();
    if (!this.#plot || (this.#plot.width === width && this.#plot.height === height)) return;
    this.#plot.setSize({ width, height });
    this.#showTip();
  }

  #recolour() {
    this.#colours = readColours();
    this.#patterns.clear();
    this.#plot?.redraw();
  }

  #redraw() {
    this.#plot?.setData(this.#plot.data);
    this.#showTip();
  }

  /** Seconds at the left and right edge. */
  #range() {
    if (this.#zoom) return this.#zoom;
    const end = this.#columns.at(-1)?.time ?? 0;
    return [end - this.#seconds, end];
  }

  /** The watts of the upper edge of the plot: the largest visible value and a margin. */
  #highest() {
    const [min, max] = this.#range();
    const top = this.#tops.at(-1) ?? [];
    let highest = 0;
    this.#columns.forEach((column, at) => {
      if (column.time <= min || column.time - this.#step >= max || column.host === null) return;
      const bound = this.#band ? column.host + (column.uncertainty ?? 0) : 0;
      highest = Math.max(highest, top[at] ?? 0, bound);
    });
    return highest > 0 ? highest * 1.06 : 1;
  }

  /** The start of a step. Between neighbours there is no seam, however exact the ticks are. */
  #start(at) {
    const { time } = this.#columns[at];
    const before = this.#columns[at - 1]?.time ?? -Infinity;
    return time - before <= 1.5 * this.#step ? before : time - this.#step;
  }

  #fill(context, layer, ratio) {
    if (layer.slot === null) return this.#colours[layer.colour];
    const colour = this.#colours[`c${layer.slot % PLAIN_SLOTS}`];
    if (layer.slot < PLAIN_SLOTS) return colour;
    const id = `${layer.slot} ${ratio}`;
    if (!this.#patterns.has(id)) this.#patterns.set(id, hatched(context, colour, this.#colours.card, ratio));
    return this.#patterns.get(id);
  }

  /** Paints the layers under the grid's labels. All positions are pixels of the canvas. */
  #paint(plot) {
    const { ctx: context, bbox } = plot;
    const ratio = uPlot.pxRatio;
    const x = (time) => plot.valToPos(time, "x", true);
    const zero = plot.valToPos(0, "y", true);
    const perWatt = plot.valToPos(1, "y", true) - zero;
    const y = (watts) => zero + watts * perWatt;
    context.save();
    context.beginPath();
    context.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    context.clip();
    const runs = this.#runs(x);
    this.#layers.forEach((layer, at) => {
      const [low, high] = [this.#tops[at - 1], this.#tops[at]];
      if (!high.some((top, column) => top > (low?.[column] ?? 0))) return;
      context.fillStyle = this.#fill(context, layer, ratio);
      context.fill(area(runs, (column) => y(low?.[column] ?? 0), (column) => y(high[column])));
      context.strokeStyle = this.#colours.card;
      context.globalAlpha = 0.6;
      context.lineWidth = ratio / 2;
      context.stroke(edge(runs, (column) => y(high[column])));
      context.globalAlpha = 1;
    });
    if (this.#band) this.#paintHost(context, runs, y, ratio);
    this.#paintEvents(context, bbox, x, ratio);
    context.restore();
  }

  /** The measured power as a line, with its uncertainty as a band. */
  #paintHost(context, runs, y, ratio) {
    const columns = this.#columns;
    const known = runs.flatMap((run) => split(run, ({ at }) => columns[at].uncertainty !== null));
    const edgeOf = (sign) => (at) => y(Math.max(0, columns[at].host + sign * columns[at].uncertainty));
    context.fillStyle = this.#colours.band;
    context.fill(area(known, edgeOf(-1), edgeOf(1)));
    context.strokeStyle = this.#colours.fg;
    context.lineWidth = 1.25 * ratio;
    context.stroke(edge(runs, (at) => y(columns[at].host)));
  }

  #paintEvents(context, bbox, x, ratio) {
    context.strokeStyle = this.#colours.muted;
    context.lineWidth = ratio;
    context.setLineDash([4 * ratio, 3 * ratio]);
    for (const { time } of this.#events) {
      context.beginPath();
      context.moveTo(x(time), bbox.top);
      context.lineTo(x(time), bbox.top + bbox.height);
      context.stroke();
    }
  }

  /** The visible steps, `{at, left, right}`, one list per stretch without a gap. */
  #runs(x) {
    const [min, max] = this.#range();
    const runs = [];
    let run = null;
    this.#columns.forEach((column, at) => {
      if (column.host === null || column.time <= min || column.time - this.#step >= max) {
        run = null;
        return;
      }
      const start = this.#start(at);
      if (!run || start !== this.#columns[at - 1].time) runs.push((run = []));
      run.push({ at, left: x(start), right: x(column.time) });
    });
    return runs;
  }

  /** The column of a time; null in a gap. */
  #columnAt(time) {
    const at = this.#columns.findIndex((column) => column.time >= time);
    return at >= 0 && this.#start(at) <= time && this.#columns[at].host !== null ? at : null;
  }

  #onSelect(plot) {
    const { left, width } = plot.select;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (width < DRAG) return;
    this.#zoomTo(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
  }

  /** Zooms to at least four steps within the range. */
  #zoomTo(min, max) {
    const end = this.#columns.at(-1)?.time ?? 0;
    const [first, last] = [end - this.#seconds, end];
    const length = Math.max(max - min, 4 * this.#step);
    if (length >= this.#seconds) {
      this.resetZoom();
      return;
    }
    const start = Math.min(Math.max((min + max - length) / 2, first), last - length);
    this.#setZoom([start, start + length]);
    this.#redraw();
  }

  #setZoom(zoom) {
    this.#zoom = zoom;
    this.#page.onZoom(zoom !== null);
  }

  /** A click on a layer picks it; the end of a selection is no click. */
  #watchClicks(over) {
    let down = null;
    over.addEventListener("mousedown", (event) => {
      down = [event.clientX, event.clientY];
    });
    over.addEventListener("click", (event) => {
      const moved = down && Math.hypot(event.clientX - down[0], event.clientY - down[1]);
      if (moved !== null && moved > DRAG) return;
      const { left, top } = over.getBoundingClientRect();
      const at = this.#columnAt(this.#plot.posToVal(event.clientX - left, "x"));
      if (at === null) return;
      const watts = this.#plot.posToVal(event.clientY - top, "y");
      const place = this.#tops.findIndex((tops) => watts <= tops[at]);
      if (place >= 0 && this.#layers[place].pick) this.#page.onPick(this.#layers[place].pick);
    });
  }

  #onKey(event) {
    if (!this.#plot || event.ctrlKey || event.altKey || event.metaKey) return;
    const [min, max] = this.#range();
    const middle = this.#place === null ? (min + max) / 2 : this.#place;
    const length = max - min;
    const actions = {
      ArrowLeft: () => this.#move(-1),
      ArrowRight: () => this.#move(1),
      "+": () => this.#zoomTo(middle - length / 4, middle + length / 4),
      "=": () => this.#zoomTo(middle - length / 4, middle + length / 4),
      "-": () => this.#zoomTo(middle - length, middle + length),
      0: () => this.resetZoom(),
      Escape: () => this.resetZoom(),
      Enter: () => this.#pickLargest(),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  }

  /** Moves the cursor by one step, and says what is there. */
  #move(direction) {
    const [min, max] = this.#range();
    const visible = this.#columns.filter(({ time }) => time > min && time <= max + 1e-6);
    if (visible.length === 0) return;
    const found = this.#place === null ? visible.length : visible.findIndex(({ time }) => time >= this.#place);
    const next = Math.min(visible.length - 1, Math.max(0, (found < 0 ? visible.length : found) + direction));
    this.#place = visible[next].time;
    const at = this.#columns.indexOf(visible[next]);
    const center = (this.#start(at) + this.#place) / 2;
    this.#plot.setCursor({ left: this.#plot.valToPos(center, "x"), top: 8 });
    this.#live.textContent = this.#spoken(this.#columns[at]);
  }

  #leave() {
    this.#place = null;
    this.#plot?.setCursor({ left: -10, top: -10 });
  }

  #pickLargest() {
    const at = this.#place === null ? null : this.#columnAt(this.#place);
    if (at === null) return;
    const containers = this.#layers.filter(({ pick }) => pick);
    containers.sort((a, b) => b.watts(this.#columns[at]) - a.watts(this.#columns[at]));
    if (containers.length > 0) this.#page.onPick(containers[0].pick);
  }

  #spoken(column) {
    if (column.host === null) return `${clock(column.time)}: no data`;
    const parts = this.#layers.map((layer) => [layer.name, layer.watts(column)]).filter(([, watts]) => watts > 0);
    parts.sort(([, a], [, b]) => b - a);
    const texts = parts.slice(0, 3).map(([name, watts]) => `${name} ${withUnit(watts, "W")}`);
    return `${clock(column.time)}: host ${withUnit(column.host, "W")}; ${texts.join(", ")}`;
  }

  /** The values under the cursor, in the order of the stack. */
  #showTip() {
    const plot = this.#plot;
    const left = plot?.cursor.left ?? -1;
    const isOver = plot && left >= 0 && this.#columns.length > 0;
    const time = isOver ? plot.posToVal(left, "x") : null;
    const place = isOver ? this.#columns.findIndex((column) => column.time >= time) : -1;
    if (place < 0) {
      this.#tip.hidden = true;
      return;
    }
    const at = this.#columnAt(time);
    if (at === null) this.#tip.replaceChildren(element("b", "", clock(time)), element("div", "", "no data"));
    else this.#tip.replaceChildren(element("b", "", clock(this.#columns[at].time)), this.#tipTable(this.#columns[at]));
    this.#tip.hidden = false;
    this.#placeTip(plot, left);
  }

  #tipTable(column) {
    const table = document.createElement("table");
    const host = withUnit(column.host, "W");
    const bound = column.uncertainty === null ? "" : plusMinus(column.host, column.uncertainty, "W");
    addTipRow(table, "sum", null, "host", host, bound);
    for (const layer of [...this.#layers].reverse()) {
      const watts = layer.watts(column);
      // What is less than a thousandth of the host cannot be seen in the chart.
      if (watts <= column.host / 1000) continue;
      addTipRow(table, "", layer.swatch, layer.name, withUnit(watts, "W"), percent(watts / column.host));
    }
    return table;
  }

  /** To the right of the cursor, or to the left where there is no room. */
  #placeTip(plot, left) {
    const box = this.#box.parentElement.getBoundingClientRect();
    const x = plot.over.getBoundingClientRect().left - box.left + left;
    const width = this.#tip.offsetWidth;
    const right = x + 14;
    const place = right + width < box.width ? right : Math.max(4, x - 14 - width);
    this.#tip.style.left = `${Math.round(place)}px`;
  }
}

function addTipRow(table, className, swatch, name, watts, share) {
  const row = table.insertRow();
  row.className = className;
  const heading = element("th");
  heading.scope = "row";
  if (swatch) heading.append(element("i", `sw ${swatch}`));
  heading.append(name);
  row.append(heading, element("td", "", watts), element("td", "pm", share));
}

/** The stretches of a list whose elements pass. */
function split(list, passes) {
  const parts = [];
  let part = null;
  for (const item of list) {
    if (!passes(item)) part = null;
    else if (part) part.push(item);
    else parts.push((part = [item]));
  }
  return parts;
}

/** The area between two edges of steps. */
function area(runs, low, high) {
  const path = new Path2D();
  for (const run of runs) {
    path.moveTo(run[0].left, low(run[0].at));
    for (const { at, left, right } of run) {
      path.lineTo(left, high(at));
      path.lineTo(right, high(at));
    }
    for (let place = run.length - 1; place >= 0; place--) {
      const { at, left, right } = run[place];
      path.lineTo(right, low(at));
      path.lineTo(left, low(at));
    }
    path.closePath();
  }
  return path;
}

/** The upper edge of steps as a line. */
function edge(runs, high) {
  const path = new Path2D();
  for (const run of runs) {
    path.moveTo(run[0].left, high(run[0].at));
    for (const { at, left, right } of run) {
      path.lineTo(left, high(at));
      path.lineTo(right, high(at));
    }
  }
  return path;
}
