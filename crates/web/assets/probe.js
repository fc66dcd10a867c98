/*
 * The live page of the probe: connects feed.js (what the probe says) with chart.js and table.js
 * (what is shown). It pauses in a hidden tab and reads what it missed when it is visible again.
 *
 * The address keeps what is shown: #container=KEY&seconds=3600.
 */

import { StackChart } from "./chart.js";
import { Feed } from "./feed.js";
import { clock, count, dateTime, duration, isNumber, money, percent, plain, plusMinus, UNKNOWN, withUnit } from "./format.js";
import { attributed, History, LAYERS, stepOf } from "./history.js";
import { arrange, barCell, element, setAttribute, setShown, setText, Table } from "./table.js";

/** Containers with a layer of their own. */
const CHART_CONTAINERS = 8;

/** Containers in the column of a tick. */
const COLUMN_CONTAINERS = 50;

/** Milliseconds between two changes of the page. */
const PAUSE = 250;
/** The same for readers who asked for less motion. */
const REDUCED_PAUSE = 5000;

const NAMES = {
  idle: "idle",
  awake: "awake packages",
  system: "system",
  unattributed: "unattributed",
  retired: "retired containers",
  other_containers: "other containers",
  containers: "containers",
  gpu: "GPUs",
};

const byId = (id) => document.getElementById(id);
const sum = (values) => values.filter(isNumber).reduce((total, value) => total + value, 0);

const past = new History();
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
let now = null;
/** The version of the probe that served this page. */
let version = null;
/** Key of the only container to show, or null. */
let filter = null;
let paused = false;
let silent = 0;
let misunderstood = false;
/** What this page saw and the history of the probe may not know. */
let seen = [];

const chart = new StackChart(byId("chart"), byId("tip"), byId("chart-live"), {
  onPick: (key) => pick(key),
  onZoom: (isZoomed) => setShown(byId("zoom-reset"), isZoomed),
});

const feed = new Feed({ seriesPath, onNow, onSeries, onState });

// Tables

/** The name of a container, with its colour, as a button that shows only this container. */
function containerCell(cell, row) {
  let button = cell.querySelector("button");
  if (!button) {
    button = element("button", "pick");
    button.type = "button";
    button.addEventListener("click", () => pick(button.dataset.key));
    cell.append(element("i", "sw"), button);
  }
  const slot = past.slot(row.key);
  const swatch = slot === null ? "sw s-other" : `sw s${slot}`;
  if (cell.firstElementChild.className !== swatch) cell.firstElementChild.className = swatch;
  button.dataset.key = row.key;
  setText(button, row.name || row.key);
  setAttribute(button, "title", [row.name, row.image].filter(Boolean).join(" – "));
  setAttribute(button, "aria-pressed", String(row.key === filter));
}

/** A number in a cell, and all of its digits for programs. */
function exactCell(cell, value, unit) {
  setText(cell, withUnit(value, unit));
  setAttribute(cell, "data-value", isNumber(value) ? String(value) : "");
}

const containersTable = new Table(byId("containers"), [
  { id: "name", title: "Container", className: "name", value: (row) => row.name, fill: containerCell },
  { id: "watts", title: "Power", value: (row) => row.watts, fill: (cell, row) => exactCell(cell, row.watts, "W") },
  {
    id: "uncertainty",
    title: "±",
    hint: "Bound of the uncertainty of the power",
    className: "pm",
    value: (row) => row.uncertainty_watts,
    text: (row) => plusMinus(row.watts, row.uncertainty_watts, "W"),
  },
  {
    id: "share",
    title: "Share of the host",
    value: (row) => row.share,
    fill: (cell, row) => barCell(cell, row.share, percent(row.share), swatchOf(row.key)),
  },
  { id: "cpu", title: "CPUs", hint: "CPU seconds per second", value: (row) => row.cpu_cores, text: (row) => plain(row.cpu_cores) },
  {
    id: "wait",
    title: "Waiting",
    hint: "Run-queue wait: seconds per second in which a thread was ready but had no CPU",
    value: (row) => row.wait_cores,
    text: (row) => plain(row.wait_cores),
    optional: true,
  },
  { id: "gpu", title: "GPU", value: (row) => row.gpu_watts, text: (row) => withUnit(row.gpu_watts, "W"), optional: true },
  {
    id: "joules",
    title: "Energy since start",
    value: (row) => row.joules,
    fill: (cell, row) => exactCell(cell, row.joules, "J"),
  },
  { id: "runtime", title: "Runtime", className: "text", value: (row) => row.runtime, text: (row) => row.runtime || UNKNOWN },
], {
  sort: { id: "watts", direction: -1 },
  rowClass: (row) => (row.key === filter ? "selected" : ""),
  empty: "No container has been found. Containers appear here as soon as they run.",
});

const streamsTable = new Table(byId("streams"), [
  { id: "name", title: "Stream", className: "name", value: (row) => row.name, text: (row) => row.name || row.key },
  { id: "container", title: "Container", className: "text name", value: (row) => row.container, text: (row) => row.container ?? UNKNOWN },
  { id: "state", title: "State", className: "text", value: (row) => row.state, text: (row) => row.state },
  { id: "codec", title: "Codec", className: "text", value: (row) => row.codec, text: (row) => row.codec || UNKNOWN },
  { id: "watts", title: "Power", value: (row) => row.watts, text: (row) => withUnit(row.watts, "W") },
  {
    id: "frame",
    title: "Energy per frame",
    value: (row) => row.joules_per_frame,
    text: (row) => withUnit(row.joules_per_frame, "J"),
    optional: true,
  },
  { id: "fps", title: "Frames/s", value: (row) => row.fps, text: (row) => plain(row.fps), optional: true },
  {
    id: "speed",
    title: "Speed",
    hint: "Media seconds per second",
    value: (row) => row.speed,
    text: (row) => (isNumber(row.speed) ? `${plain(row.speed)}×` : UNKNOWN),
    optional: true,
  },
  { id: "media", title: "Media time", value: (row) => row.media_seconds, text: (row) => duration(row.media_seconds), optional: true },
  { id: "vmaf", title: "VMAF", value: (row) => row.vmaf, text: (row) => plain(row.vmaf), optional: true },
  {
    id: "cost",
    title: "Cost an hour",
    value: (row) => row.cost_per_hour,
    text: (row) => (isNumber(row.cost_per_hour) ? `${money(row.cost_per_hour, now?.currency)} (${now?.currency ?? "no currency"})` : UNKNOWN),
    optional: true,
  },
  { id: "cpu", title: "CPUs", hint: "CPU seconds per second", value: (row) => row.cpu_cores, text: (row) => plain(row.cpu_cores), optional: true },
  {
    id: "wait",
    title: "Waiting",
    hint: "Run-queue wait: seconds per second in which a thread was ready but had no CPU",
    value: (row) => row.wait_cores,
    text: (row) => plain(row.wait_cores),
    optional: true,
  },
  { id: "joules", title: "Energy since start", value: (row) => row.joules, text: (row) => withUnit(row.joules, "J") },
], {
  sort: { id: "watts", direction: -1 },
  rowClass: (row) => (row.state === "ended" ? "ended" : ""),
  empty: "No ffmpeg process has been seen. Streams appear here as soon as one runs.",
});

const sorted = (row, value) => (row.isTotal ? null : value);

const layersTable = new Table(byId("layers"), [
  { id: "name", title: "Layer", value: (row) => sorted(row, row.name), fill: layerCell },
  { id: "watts", title: "Power", value: (row) => sorted(row, row.watts), fill: (cell, row) => exactCell(cell, row.watts, "W") },
  { id: "share", title: "Share of the host", value: (row) => sorted(row, row.share), text: (row) => percent(row.share) },
  {
    id: "joules",
    title: "Energy since start",
    value: (row) => sorted(row, row.joules),
    fill: (cell, row) => exactCell(cell, row.joules, "J"),
  },
], { sort: { id: "watts", direction: -1 }, empty: "No energy source is available." });

function layerCell(cell, row) {
  setText(cell, row.name);
  if (cell.dataset.layer !== row.key) cell.dataset.layer = row.key;
}

const SOURCE_STATES = { usable: ["ok", 2], absent: ["", 1], denied: ["bad", 0], broken: ["bad", 0] };

function sourceState(cell, row) {
  if (!cell.firstElementChild) cell.append(element("span", "badge"));
  const [kind] = SOURCE_STATES[row.state] ?? ["warn", 0];
  const className = kind ? `badge ${kind}` : "badge";
  if (cell.firstElementChild.className !== className) cell.firstElementChild.className = className;
  setText(cell.firstElementChild, row.state);
}

function sourceDetail(cell, row) {
  const text = [row.detail, row.remedy && `What to do: ${row.remedy}`].filter(Boolean).join(" ");
  setText(cell, text || UNKNOWN);
}

const sourcesTable = new Table(byId("sources"), [
  { id: "name", title: "Source", value: (row) => row.name, text: (row) => row.name },
  { id: "state", title: "State", className: "text", value: (row) => (SOURCE_STATES[row.state] ?? ["", 0])[1], fill: sourceState },
  { id: "detail", title: "Detail", className: "text fill", value: (row) => row.detail, fill: sourceDetail },
], { sort: { id: "state", direction: 1 }, empty: "No data source is known." });

const gpusTable = new Table(byId("gpus"), [
  { id: "name", title: "GPU", className: "name", value: (row) => row.name, text: (row) => row.name || row.key },
  { id: "watts", title: "Power", value: (row) => row.watts, text: (row) => withUnit(row.watts, "W") },
  {
    id: "engines",
    title: "Engines",
    className: "text fill",
    value: (row) => Math.max(-1, ...Object.values(row.engines ?? {}).filter(isNumber)),
    text: (row) => engines(row.engines),
  },
], { sort: { id: "watts", direction: -1 }, empty: "No GPU has been found." });

function engines(loads) {
  const texts = Object.entries(loads ?? {}).filter(([, load]) => isNumber(load)).map(([name, load]) => `${name} ${percent(load)}`);
  return texts.join(" · ") || UNKNOWN;
}

// What the probe says

/** Path and query of the history that is shown. */
function seriesPath() {
  // The probe rounds up to a multiple of the tick, whose measured length differs from the set one.
  const step = stepOf(past.seconds, past.tick) - past.tick / 4;
  const query = new URLSearchParams({ seconds: past.seconds, step: step.toFixed(3), containers: CHART_CONTAINERS });
  if (filter !== null) query.set("container", filter);
  return `/api/v1/series?${query}`;
}

function onNow(answer, column) {
  if (now && answer.started !== now.started) see(answer.time, "probe restarted");
  now = answer;
  version ??= answer.version;
  if (isNumber(answer.tick_seconds) && answer.tick_seconds > 0) past.tick = answer.tick_seconds;
  if (column && !past.append(column)) {
    see(answer.time, "the clock was set back");
    feed.refreshSeries();
  }
  // A column has only the largest containers.
  const isCut = column && Object.keys(column.containers ?? {}).length >= COLUMN_CONTAINERS;
  if (isCut && filter !== null && !Object.hasOwn(column.containers, filter)) feed.refreshSeries();
  schedule();
}

function onSeries(answer) {
  past.replace(answer, now?.time ?? answer.end);
  schedule();
}

function onState(state) {
  silent = state.silent;
  const since = now ? `; last values of ${clock(now.time)}` : "";
  const error = state.error?.endsWith("no connection") && silent > 0 ? null : state.error;
  setText(byId("silence"), silent > 0 ? `No answer from the probe for ${duration(silent)}${since}.` : "");
  setShown(byId("silence"), silent > 0);
  setText(byId("alert"), silent > 0 ? "The probe does not answer." : "");
  byId("main").classList.toggle("stale", silent > 0);
  let problem = state.refused
    ? "The probe accepts no more pages with live updates; this one reads the values every few seconds."
    : error;
  if (misunderstood) problem = "This page does not understand the answer of the probe. Reload it.";
  setText(byId("problem"), problem ?? "");
  setShown(byId("problem"), Boolean(problem));
  showState();
}

/** True if the probe shows a file instead of this machine. */
function isRecording() {
  return (now?.banners ?? []).some(({ kind }) => /^RECORD/i.test(kind));
}

function showState() {
  let [text, kind] = ["live", "ok"];
  if (paused) [text, kind] = ["paused", "info"];
  else if (silent > 0) [text, kind] = ["no answer", "bad"];
  else if (!now) [text, kind] = ["connecting", ""];
  else if (isRecording()) [text, kind] = ["recording", "info"];
  const badge = byId("state");
  setText(badge, text);
  const className = kind ? `badge ${kind}` : "badge";
  if (badge.className !== className) badge.className = className;
}

function see(time, text) {
  seen = [...seen, { time, text }].slice(-20);
}

// What is shown

let isScheduled = false;
let shownAt = -Infinity;

/** Shows the newest state soon; several changes at once are shown together. */
function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  const wait = Math.max(0, shownAt + (reducedMotion.matches ? REDUCED_PAUSE : PAUSE) - performance.now());
  setTimeout(() => requestAnimationFrame(() => {
    isScheduled = false;
    show();
  }), wait);
}

function show() {
  shownAt = performance.now();
  if (!now) return;
  misunderstood = false;
  const view = { ...now, attributed: attributed(now) };
  for (const part of [showHead, showTiles, showChart, showLayers, showTables]) {
    try {
      part(view);
    } catch (error) {
      // An answer of another version of the probe: the next report of the feed says so, and the
      // other parts go on.
      misunderstood = true;
      console.error(error);
    }
  }
}

/** A recording can be longer than the history of a probe. */
function offerLongRanges() {
  const range = byId("range");
  if (!isRecording() || range.options.length > 3) return;
  range.append(new Option("6 h", "21600"), new Option("24 h", "86400"));
}

function showHead(view) {
  offerLongRanges();
  setText(byId("host"), view.host ?? "");
  document.title = `${withUnit(view.watts?.host, "W")} – ${view.host ?? ""} – Wattcast`;
  byId("main").dataset.sequence = view.sequence;
  const banners = (view.banners ?? []).map(({ kind, text }) => `${kind}\n${text}`);
  if (byId("banners").dataset.shown !== banners.join("\n\n")) {
    byId("banners").dataset.shown = banners.join("\n\n");
    byId("banners").replaceChildren(...(view.banners ?? []).map(banner));
  }
  const idle = view.idle_known === false ? view.idle_note ?? "idle not learnt yet" : "";
  setText(byId("idle"), idle && `${idle[0].toUpperCase()}${idle.slice(1)}: idle power that is not known is not in the idle layer but in what runs.`);
  setShown(byId("idle"), idle !== "");
  setShown(byId("update"), view.version !== version);
  const tick = isNumber(view.tick_seconds) ? `, a tick of ${withUnit(view.tick_seconds, "s")}` : "";
  // Totals continue after a restart. Those of this start begin with its first tick.
  const isContinued = isNumber(view.totals_since) && view.totals_since < view.started - 1;
  const since = isContinued ? dateTime(view.totals_since) : "then";
  setText(byId("about"), `wattcast-probe ${view.version}${tick}, running since ${dateTime(view.started)}; measured ${withUnit(view.joules?.measured, "J")} since ${since}.`);
}

function banner({ kind, text }) {
  const node = element("p", /^RECORD/i.test(kind) ? "banner" : "banner warn");
  node.append(element("b", "", kind), text);
  return node;
}

function showTiles(view) {
  const host = view.watts?.host;
  const covered = view.window_seconds;
  const seconds = isNumber(covered) && covered > 0 ? `, mean of ${duration(Math.max(1, Math.round(covered)))}` : "";
  exactTile("tile-host", host, withUnit(host, "W"));
  setText(byId("tile-host-note"), `host power${seconds}`);
  exactTile("tile-containers", view.attributed, withUnit(view.attributed, "W"));
  const share = isNumber(view.attributed) && host > 0 ? `, ${percent(view.attributed / host)}` : "";
  setText(byId("tile-containers-note"), `attributed to containers${share}`);
  exactTile("tile-day", isNumber(host) ? host * 24 : null, isNumber(host) ? withUnit(host * 24, "Wh") : UNKNOWN);
  const isPriced = isNumber(view.price_per_joule);
  const cost = isNumber(view.cost_per_hour) ? view.cost_per_hour : null;
  setShown(byId("cost"), isPriced);
  exactTile("tile-cost", cost, money(cost, view.currency));
  setText(byId("tile-cost-note"), `cost an hour (${view.currency ?? "no currency"})`);
  const streams = view.streams ?? [];
  const running = streams.filter(({ state }) => state === "running").length;
  exactTile("tile-streams", running, count(running));
  const ended = streams.length - running;
  setText(byId("tile-streams-note"), `running streams${ended > 0 ? `, ${count(ended)} ended` : ""}`);
}

function exactTile(id, value, text) {
  setText(document.getElementById(id), text);
  setAttribute(document.getElementById(id), "data-value", isNumber(value) ? String(value) : "");
}

/** The class of the colour of a container. */
function swatchOf(key) {
  const slot = past.slot(key);
  return slot === null ? "s-other" : `s${slot}`;
}

function containerLayer({ key, name }) {
  const watts = (column) => column.containers.get(key) ?? 0;
  return { name: name || key, pick: key, slot: past.slot(key) ?? 0, swatch: `s${past.slot(key) ?? 0}`, watts };
}

function layer(id) {
  const colour = id === "other_containers" ? "other" : id;
  const watts = id === "other_containers" ? (column) => past.otherWatts(column) : (column) => column.layers[id];
  return { name: NAMES[id], pick: null, slot: null, colour, swatch: `s-${colour}`, watts };
}

/** The layers from the bottom of the stack. */
function chartLayers() {
  if (filter !== null) return [containerLayer({ key: filter, name: nameOf(filter) })];
  const below = LAYERS.filter((id) => id !== "gpu").map(layer);
  return [...below, ...past.shown.map(containerLayer), layer("gpu")];
}

function showChart() {
  const layers = chartLayers();
  const { columns, step, seconds } = past;
  const events = shownEvents();
  // Before the chart, which measures the room that it has.
  setShown(byId("chart"), columns.length > 0 && StackChart.isAvailable);
  chart.show({ columns, layers, step, seconds, events, band: filter === null });
  setText(byId("chart-empty"), emptyText());
  setShown(byId("chart-empty"), emptyText() !== "");
  showLegend(layers);
  showFilter();
  const lines = events.map(({ time, text }) => `${clock(time)} ${text}`);
  if (byId("events").dataset.shown !== lines.join("\n")) {
    byId("events").dataset.shown = lines.join("\n");
    byId("events").replaceChildren(...lines.map((line) => element("li", "", line)));
  }
  setShown(byId("events"), lines.length > 0);
  const host = withUnit(columns.at(-1)?.host, "W");
  setAttribute(byId("chart"), "aria-label", `Host power by container, last ${duration(seconds)}; now ${host}`);
  setText(byId("query-chart"), chartQuery());
  setText(byId("api-chart"), seriesPath());
  setAttribute(byId("api-chart"), "href", seriesPath());
}

function emptyText() {
  if (!StackChart.isAvailable) return "The chart library could not be loaded; reload the page. The tables are complete.";
  if (past.columns.length === 0) return "Waiting for the first measurement.";
  if (filter !== null && !past.shown.some(({ key }) => key === filter)) return "No energy of this container in this time.";
  return "";
}

/** Events of the probe, and what this page saw unless the probe says the same. */
function shownEvents() {
  const [first, last] = [past.columns[0]?.time ?? Infinity, past.columns.at(-1)?.time ?? Infinity];
  const isKnown = (event) => past.events.some(({ time }) => Math.abs(time - event.time) < 30 + 2 * past.step);
  const own = seen.filter((event) => event.time >= first && event.time <= last && !isKnown(event));
  return [...past.events, ...own].sort((a, b) => a.time - b.time).slice(-20);
}

const legend = new Map();

/** What is drawn over the layers. */
const LINES = [
  { name: "± uncertainty", pick: null, swatch: "s-band" },
  { name: "measured", pick: null, swatch: "s-host" },
];

/** The layers from the top; a container is a button. */
function showLegend(layers) {
  const isBounded = past.columns.some(({ uncertainty }) => uncertainty !== null);
  const lines = filter === null ? LINES.slice(isBounded ? 0 : 1) : [];
  const items = [...layers, ...lines].reverse().map((item) => [item.pick ?? item.name, item]);
  const nodes = items.map(([id, item]) => {
    const node = legend.get(id) ?? legendItem(item);
    legend.set(id, node);
    const target = node.firstElementChild;
    const swatch = `sw ${item.swatch}`;
    if (target.firstElementChild.className !== swatch) target.firstElementChild.className = swatch;
    if (target.lastChild.data !== item.name) target.lastChild.data = item.name;
    if (item.pick !== null) setAttribute(target, "aria-pressed", String(item.pick === filter));
    return node;
  });
  const ids = new Set(items.map(([id]) => id));
  for (const id of legend.keys()) if (!ids.has(id)) legend.delete(id);
  arrange(byId("legend"), nodes);
}

function legendItem(item) {
  const target = element(item.pick === null ? "span" : "button", item.pick === null ? "item" : "");
  if (item.pick !== null) {
    target.type = "button";
    target.addEventListener("click", () => pick(item.pick));
  }
  target.append(element("i", "sw"), document.createTextNode(item.name));
  const node = document.createElement("li");
  node.append(target);
  return node;
}

function showLayers(view) {
  const host = view.watts?.host;
  const ids = ["containers", ...LAYERS.filter((id) => id !== "other_containers")];
  const rows = ids.map((id) => {
    const watts = view.watts?.layers?.[id];
    const share = host > 0 && isNumber(watts) ? watts / host : null;
    return { key: id, name: NAMES[id], watts, share, joules: view.joules?.layers?.[id] };
  });
  const share = isNumber(host) && host > 0 ? 1 : null;
  layersTable.update([...rows, { key: "host", name: "host (measured)", watts: host, share, joules: view.joules?.measured, isTotal: true }]);
  const difference = sum(rows.map(({ joules }) => joules)) - (view.joules?.measured ?? NaN);
  // Doubles of the size of these sums have no more digits.
  const text = withUnit(Math.abs(difference) < 5e-6 ? 0 : difference, "J");
  setText(byId("sum"), isNumber(difference) ? `All layers less the measured energy: ${text}.` : "");
}

function showTables(view) {
  const name = nameOf(filter);
  const streams = (view.streams ?? []).filter(({ container }) => filter === null || container === name);
  streamsTable.update(streams, filter === null ? undefined : `No stream of ${name}.`);
  const known = streams.some((row) => isNumber(row.joules_per_frame) || isNumber(row.fps) || isNumber(row.speed));
  setShown(byId("streams-note"), streams.length > 0 && !known);
  containersTable.update(view.containers ?? []);
  const others = view.other_containers;
  setText(byId("others"), others?.count > 0 ? `${count(others.count)} more containers with ${withUnit(others.watts, "W")} together.` : "");
  setShown(byId("others"), others?.count > 0);
  const keyed = (rows, key) => (rows ?? []).map((row, place) => ({ ...row, key: `${place} ${key(row)}` }));
  gpusTable.update(keyed(view.gpus, ({ name: gpu }) => gpu));
  setShown(byId("gpus-section"), (view.gpus ?? []).length > 0);
  sourcesTable.update(keyed(view.sources, ({ name: source }) => source));
  setText(byId("query-streams"), `sum by (stream) (${rate("stream_energy", selector())})`);
  setText(byId("query-containers"), `topk(20, sum by (container) (${rate("container_energy", selector())}))`);
  setText(byId("query-gpus"), `sum by (package) (${rate("energy", '{zone="gpu"}')})`);
}

// Queries

/** The matchers of a PromQL selector, with that of the container that is shown alone. */
function selector(...matchers) {
  const quoted = (text) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")}"`;
  const all = filter === null ? matchers : [...matchers, `container=${quoted(nameOf(filter))}`];
  return all.length > 0 ? `{${all.join(", ")}}` : "";
}

/** The mean power of a counter of energy over a minute. */
function rate(name, matchers) {
  return `rate(wattcast_${name}_joules_total${matchers}[1m])`;
}

function chartQuery() {
  const load = selector('zone!="gpu"');
  const containers = `sum by (container) (${rate("container_energy", load)})`;
  const lines = [
    "# containers, without GPUs and without the power of keeping packages awake",
    `(${containers} - sum by (container) (${rate("container_awake_energy", load)})) or ${containers}`,
  ];
  if (filter !== null) return lines.join("\n");
  return [
    ...lines,
    "# GPUs",
    `sum(${rate("energy", '{zone="gpu"}')})`,
    "# awake packages, system, unattributed, retired containers, idle",
    `sum(${rate("container_awake_energy", load)})`,
    `sum(${rate("system_energy", load)})`,
    `sum(${rate("unattributed_energy", load)})`,
    `sum(${rate("retired_energy", load)})`,
    `sum(${rate("idle_energy", load)}) + (sum(${rate("container_idle_energy", load)}) or vector(0))`,
    "# measured power of the host",
    `sum(${rate("energy", '{zone=~"package|dram|gpu"}')})`,
  ].join("\n");
}

// What the reader does

/** The name of a container by its key, as far as it is known. */
function nameOf(key) {
  const known = [...(now?.containers ?? []), ...past.shown].find((row) => row.key === key);
  return known?.name || key;
}

/** Shows only this container, or all again. */
function pick(key) {
  filter = key === filter ? null : key;
  keepAddress();
  feed.refreshSeries(true);
  show();
}

function showFilter() {
  setShown(byId("filter"), filter !== null);
  setText(byId("filter-name"), filter === null ? "" : nameOf(filter));
}

function keepAddress() {
  const shown = new URLSearchParams();
  if (filter !== null) shown.set("container", filter);
  if (past.seconds !== 900) shown.set("seconds", past.seconds);
  const hash = shown.size > 0 ? `#${shown}` : "";
  window.history.replaceState(null, "", `${location.pathname}${location.search}${hash}`);
}

function readAddress() {
  const shown = new URLSearchParams(location.hash.slice(1));
  filter = shown.get("container") || null;
  const range = byId("range");
  const seconds = shown.get("seconds") ?? "900";
  if ([...range.options].some(({ value }) => value === seconds)) {
    range.value = seconds;
    past.seconds = Number(seconds);
  }
}

/** Reads while the page can be seen and is not paused. */
function follow() {
  if (paused || document.hidden) feed.stop();
  else feed.start();
  setText(byId("pause"), paused ? "Resume" : "Pause");
  showState();
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  if (paused) onState({ silent: 0, error: null, refused: false });
  follow();
});
byId("reload").addEventListener("click", () => location.reload());
byId("zoom-reset").addEventListener("click", () => {
  chart.resetZoom();
  byId("chart").focus();
});
byId("filter-clear").addEventListener("click", () => {
  pick(filter);
  byId("chart").focus();
});
byId("range").addEventListener("change", () => {
  past.seconds = Number(byId("range").value);
  keepAddress();
  chart.resetZoom();
  feed.refreshSeries(true);
  show();
});
addEventListener("hashchange", () => {
  readAddress();
  feed.refreshSeries(true);
  show();
});
document.addEventListener("visibilitychange", follow);
// A page that the browser keeps for its back button has no connection.
addEventListener("pagehide", () => feed.stop());
addEventListener("pageshow", follow);

readAddress();
follow();
