/*
 * What the page remembers: the columns of the chart. No element of the page is touched here.
 *
 * A column is the mean power of one step: `{time, covered, host, uncertainty, layers, containers}`,
 * `time` being the end of the step in unix seconds, `covered` the seconds of it that are known,
 * `layers` watts by layer, `containers` a Map of watts by key. `host` is null in a gap. Watts come
 * from the probe, which divides by its own monotonic clock: the wall clock only places a column, so
 * that a clock step cannot make a spike.
 */

import { isNumber } from "./format.js";

/** Layers that are no single container, from the bottom of the stack. */
export const LAYERS = ["idle", "awake", "system", "unattributed", "retired", "other_containers", "gpu"];

/** Most columns of the chart. */
const MAX_COLUMNS = 900;

/** Containers with a colour of their own. */
const SLOTS = 12;

/** The step in seconds, a multiple of the tick, with which a range has at most MAX_COLUMNS. */
export function stepOf(seconds, tick) {
  return tick * Math.max(1, Math.ceil(seconds / (tick * MAX_COLUMNS) - 1e-9));
}

const orNull = (value) => (isNumber(value) ? value : null);

/** The layers of a column; what is in no container of the column is in `other_containers`. */
function layersOf(layers, containers) {
  const known = {};
  for (const id of LAYERS) known[id] = isNumber(layers?.[id]) ? layers[id] : 0;
  if (!isNumber(layers?.other_containers) && isNumber(layers?.containers)) {
    let named = 0;
    for (const watts of containers.values()) named += watts;
    known.other_containers = Math.max(0, layers.containers - named);
  }
  return known;
}

/** The columns of an answer of /api/v1/series, oldest first. */
function columnsOf(answer) {
  const columns = [];
  const { time = [], host = [], uncertainty = [], layers = {}, containers = [] } = answer;
  // From the newest: after the clock was set back, older steps can have later times.
  for (let at = time.length - 1; at >= 0; at--) {
    if (!isNumber(time[at]) || (columns.length > 0 && time[at] >= columns[columns.length - 1].time)) continue;
    const named = new Map();
    for (const { key, watts } of containers) if (isNumber(watts?.[at])) named.set(key, watts[at]);
    const parts = Object.fromEntries(Object.entries(layers).map(([id, values]) => [id, values?.[at]]));
    columns.push({
      time: time[at],
      host: orNull(host[at]),
      uncertainty: orNull(uncertainty[at]),
      layers: layersOf(parts, named),
      containers: named,
    });
  }
  return columns.reverse();
}

/** The mean of `covered` seconds and `seconds` more. */
function extended(mean, covered, value, seconds) {
  if (!isNumber(value)) return mean;
  return isNumber(mean) ? (mean * covered + value * seconds) / (covered + seconds) : value;
}

/** A column with a part of a tick; a container without a value used nothing. */
function extendedColumn(column, tick, seconds) {
  const { time, covered } = column;
  if (tick.host === null) return column;
  if (column.host === null) return { ...tick, time, covered: seconds };
  const layers = {};
  for (const id of LAYERS) layers[id] = extended(column.layers[id], covered, tick.layers[id], seconds);
  const containers = new Map();
  for (const key of new Set([...column.containers.keys(), ...tick.containers.keys()])) {
    const [before, now] = [column.containers.get(key) ?? 0, tick.containers.get(key) ?? 0];
    containers.set(key, extended(before, covered, now, seconds));
  }
  return {
    time,
    covered: covered + seconds,
    host: extended(column.host, covered, tick.host, seconds),
    uncertainty: extended(column.uncertainty, covered, tick.uncertainty, seconds),
    layers,
    containers,
  };
}

/** A column without a value: a gap. */
function gap(time) {
  return { time, covered: 0, host: null, uncertainty: null, layers: layersOf({}, new Map()), containers: new Map() };
}

/** The columns of the chart, the containers in it, and what happened. */
export class History {
  columns = [];
  /** Containers with a layer of their own, the largest first: `{key, name}`. */
  shown = [];
  /** `{time, text}`, oldest first. */
  events = [];
  seconds = 900;
  tick = 1;
  step = 1;
  #slots = new Map();

  /**
   * Takes over an answer of /api/v1/series; `newest` is the time of the last tick. Columns outside
   * of its time remain.
   */
  replace(answer, newest) {
    const step = isNumber(answer.step) && answer.step > 0 ? answer.step : this.step;
    // Steps of another length cannot be shown together.
    if (Math.abs(step - this.step) > 1e-6) this.columns = [];
    this.step = step;
    const columns = columnsOf(answer);
    for (const column of columns) {
      const covered = column.host === null ? 0 : newest - column.time + step;
      column.covered = Math.min(step, Math.max(0, covered));
    }
    this.shown = (answer.containers ?? []).slice(0, SLOTS).map(({ key, name }) => ({ key, name }));
    this.#assignSlots();
    this.events = (answer.events ?? []).filter(({ time }) => isNumber(time));
    if (columns.length > 0) {
      // Older ones are from before a restart of a probe that keeps no history.
      const first = columns.findIndex(({ host }) => host !== null);
      const start = first < 0 ? Infinity : columns[first].time - this.step / 2;
      const end = columns.at(-1).time + this.step / 2;
      const earlier = this.columns.filter(({ time }) => time < start && time <= end);
      const later = this.columns.filter(({ time }) => time > end);
      const known = columns.filter(({ time }) => time > (earlier.at(-1)?.time ?? -Infinity) + this.step / 2);
      this.columns = [...earlier, ...known, ...later];
    }
    this.#trim();
  }

  /**
   * Adds the column of a tick to the steps that it overlaps. False if the clock was set back: the
   * times of the columns no longer fit, and /api/v1/series has to be read again.
   */
  append(answer) {
    if (!isNumber(answer?.time)) return true;
    const containers = new Map(Object.entries(answer.containers ?? {}).filter(([, watts]) => isNumber(watts)));
    const tick = {
      host: orNull(answer.host),
      uncertainty: orNull(answer.uncertainty),
      layers: layersOf(answer.layers, containers),
      containers,
    };
    const last = this.columns.at(-1);
    const place = Math.ceil(answer.time / this.step - 1e-6);
    if (last && place * this.step < last.time - Math.max(5 * this.tick, 2 * this.step)) {
      this.columns = [];
      return false;
    }
    const start = answer.time - this.tick;
    const first = Math.ceil((start + 1e-6) / this.step);
    for (let at = Math.max(first, place - 2); at <= place; at++) this.#add(at * this.step, tick, start, answer.time);
    this.#trim();
    return true;
  }

  /** Adds the part of a tick that is in the step which ends at `time`. */
  #add(time, tick, start, end) {
    let last = this.columns.at(-1);
    if (!last || time > last.time + this.step / 2) {
      // After missed ticks the steps without any are a gap, until the history is read again.
      if (last && time > last.time + 1.5 * this.step) this.columns.push(gap(time - this.step));
      this.columns.push((last = gap(time)));
    }
    const at = this.columns.findLastIndex((column) => Math.abs(column.time - time) < this.step / 2);
    if (at < 0) return;
    const overlap = Math.min(end, time) - Math.max(start, time - this.step);
    // A step that is complete, from the history, has this tick already.
    const seconds = Math.min(overlap, this.step - this.columns[at].covered);
    if (seconds > this.step * 1e-6) this.columns[at] = extendedColumn(this.columns[at], tick, seconds);
  }

  /** Watts of what has no layer of its own in a column. */
  otherWatts(column) {
    let other = column.layers.other_containers;
    const own = new Set(this.shown.map(({ key }) => key));
    for (const [key, watts] of column.containers) if (!own.has(key)) other += watts;
    return other;
  }

  /** The colour of a container, 0 to SLOTS - 1; null if it has no layer of its own. */
  slot(key) {
    return this.#slots.get(key) ?? null;
  }

  /** A container keeps its colour while it is shown; a new one gets the first free one. */
  #assignSlots() {
    const slots = new Map();
    for (const { key } of this.shown) if (this.#slots.has(key)) slots.set(key, this.#slots.get(key));
    const used = new Set(slots.values());
    const free = Array.from({ length: SLOTS }, (_, slot) => slot).filter((slot) => !used.has(slot));
    for (const { key } of this.shown) if (!slots.has(key)) slots.set(key, free.shift());
    this.#slots = slots;
  }

  #trim() {
    const end = this.columns.at(-1)?.time ?? 0;
    const from = this.columns.findIndex(({ time }) => time > end - this.seconds + this.step / 2);
    if (from > 0) this.columns.splice(0, from);
    const first = this.columns[0]?.time ?? Infinity;
    this.events = this.events.filter(({ time }) => time >= first - this.step);
  }
}

/** Watts attributed to containers in an answer; null where power is not known. */
export function attributed(now) {
  const rows = (now.containers ?? []).map(({ watts }) => watts).filter(isNumber);
  if (!now.containers || !isNumber(now.watts?.host)) return null;
  return rows.reduce((sum, watts) => sum + watts, 0) + (isNumber(now.other_containers?.watts) ? now.other_containers.watts : 0);
}
