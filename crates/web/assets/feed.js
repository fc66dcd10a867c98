/*
 * The connection to the probe: /api/v1/now and /api/v1/series once, then server-sent events, one
 * per tick. It reconnects by itself, reads again what it missed, and says how long the probe has
 * not answered. No element of the page is touched here.
 *
 * Every repetition has a bound: a page that the probe refuses (it serves a limited number of event
 * streams) reads /api/v1/now every few seconds instead.
 */

/** Ticks without news after which the values are called old. */
const MISSED_TICKS = 3;

/** Milliseconds. */
const FIRST_DELAY = 1000;
const MAX_DELAY = 5000;
const TIMEOUT = 10_000;
/** The series is read again so often, because the largest containers change. */
const SERIES_AGE = 60_000;
/** And not more often than this, whatever happens. */
const SERIES_PAUSE = 2000;
/** Ticks without energy after which the history is asked whether it has it by now. */
const UNSETTLED_TICKS = 10;
/** A connection without any event for so long is dead, although the browser has not noticed. */
const SILENCE = 20_000;

/** What a response says about its failure: a field of JSON, or the first line of a text. */
async function reason(response) {
  const text = (await response.text().catch(() => "")).trim();
  try {
    return String(JSON.parse(text).error);
  } catch {
    return text.split("\n")[0].slice(0, 200) || response.statusText;
  }
}

/** The answer to a GET request as JSON. Fails with a text for people. */
async function read(path, signal) {
  let response;
  try {
    const signals = AbortSignal.any ? AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]) : signal;
    response = await fetch(path, { signal: signals, cache: "no-store", headers: { Accept: "application/json" } });
  } catch (error) {
    throw new Error(`${path.split("?")[0]}: ${error.name === "TimeoutError" ? "no answer in 10 s" : "no connection"}`);
  }
  if (!response.ok) {
    throw new Error(`${path.split("?")[0]}: ${response.status} ${await reason(response)}`);
  }
  try {
    return await response.json();
  } catch {
    throw new Error(`${path.split("?")[0]}: the answer is not JSON`);
  }
}

/**
 * Reads the API while it runs. `page` gives and takes:
 * - `seriesPath()`: path and query of the series to read;
 * - `onNow(now, column)`: an answer of /api/v1/now; `column` is that of a tick, else null;
 * - `onSeries(series)`;
 * - `onState({silent, error, refused})`: seconds without news beyond the limit, or 0; the last
 *   error, or null; true if only the event stream is refused.
 */
export class Feed {
  #page;
  #running = false;
  /** The probe serves a recording: no event will come. */
  #recorded = false;
  #events = null;
  #watch = 0;
  #retry = 0;
  #delay = FIRST_DELAY;
  #abort = new AbortController();
  #tickSeconds = 1;
  #lastNews = 0;
  #lastEvent = 0;
  #sequence = null;
  #started = null;
  #refusals = 0;
  #nowWorks = false;
  #error = null;
  #seriesError = null;
  /** Ticks in a row whose energy was not known yet; a later tick may say more about them. */
  #unsettled = 0;
  #seriesRead = -Infinity;
  #seriesAsked = -Infinity;
  #seriesTimer = 0;
  #seriesNumber = 0;

  constructor(page) {
    this.#page = page;
  }

  /** Reads what was missed and continues. */
  start() {
    if (this.#running) return;
    this.#running = true;
    this.#recorded = false;
    this.#delay = FIRST_DELAY;
    this.#refusals = 0;
    this.#lastNews = performance.now();
    this.#watch = setInterval(() => this.#check(), 1000);
    this.#connect();
  }

  /** Closes everything: a paused page costs the probe nothing. */
  stop() {
    this.#running = false;
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#close();
    clearInterval(this.#watch);
    clearTimeout(this.#retry);
    clearTimeout(this.#seriesTimer);
    this.#seriesTimer = 0;
    this.#seriesAsked = -Infinity;
  }

  /** Reads the series again; `atOnce` after an action of the reader, else at most every 2 s. */
  refreshSeries(atOnce = false) {
    // The reader of a paused page can still ask for another range or container.
    if (!atOnce && (!this.#running || this.#seriesTimer)) return;
    clearTimeout(this.#seriesTimer);
    const wait = atOnce ? 0 : Math.max(0, this.#seriesAsked + SERIES_PAUSE - performance.now());
    this.#seriesTimer = setTimeout(() => {
      this.#seriesTimer = 0;
      this.#readSeries();
    }, wait);
  }

  async #connect() {
    this.#close();
    if (!this.#recorded) this.#listen();
    if (await this.#readNow()) this.refreshSeries();
    else this.#reconnect();
  }

  #listen() {
    const events = new EventSource("/api/v1/events");
    this.#events = events;
    this.#lastEvent = performance.now();
    events.addEventListener("tick", (event) => this.#onTick(event));
    // The stream of a probe that shuts down, and one that failed: both are opened again, later.
    const again = () => {
      if (events !== this.#events) return;
      this.#refusals += 1;
      this.#reconnect();
    };
    events.addEventListener("end", again);
    events.addEventListener("error", again);
  }

  #close() {
    this.#events?.close();
    this.#events = null;
  }

  #reconnect() {
    this.#close();
    clearTimeout(this.#retry);
    if (!this.#running || this.#recorded) return;
    // Pages that lost the same probe do not all come back at the same moment.
    const delay = this.#delay * (0.75 + Math.random() / 2);
    this.#retry = setTimeout(() => this.#connect(), delay);
    this.#delay = Math.min(this.#delay * 2, MAX_DELAY);
  }

  #onTick(event) {
    let tick = null;
    try {
      tick = JSON.parse(event.data);
    } catch {
      // Said below.
    }
    if (typeof tick?.now !== "object" || tick.now === null) {
      this.#fail("/api/v1/events: an event without values");
      return;
    }
    this.#lastEvent = performance.now();
    this.#delay = FIRST_DELAY;
    this.#refusals = 0;
    clearTimeout(this.#retry);
    this.#take(tick.now, tick.column ?? null);
  }

  /** True if there was an answer. */
  async #readNow() {
    const { signal } = this.#abort;
    try {
      const now = await read("/api/v1/now?containers=20", signal);
      if (signal.aborted) return true;
      this.#nowWorks = true;
      this.#recorded = (now.banners ?? []).some(({ kind }) => /^RECORD/i.test(kind));
      if (this.#recorded) this.#close();
      this.#take(now, null);
      return true;
    } catch (error) {
      if (signal.aborted) return true;
      this.#nowWorks = false;
      this.#fail(error.message);
      return false;
    }
  }

  /** Hands an answer on, unless an event was faster. */
  #take(now, column) {
    this.#lastNews = performance.now();
    this.#error = null;
    if (typeof now?.tick_seconds === "number" && now.tick_seconds > 0) this.#tickSeconds = now.tick_seconds;
    const restarted = this.#started !== null && now.started !== this.#started;
    const isOld = !restarted && this.#sequence !== null && now.sequence <= this.#sequence;
    const missed = restarted || (column && this.#sequence !== null && now.sequence > this.#sequence + 1);
    if (!isOld) {
      this.#started = now.started;
      this.#sequence = now.sequence;
      this.#page.onNow(now, column);
    }
    if (column) this.#unsettled = column.host === null ? this.#unsettled + 1 : -this.#unsettled;
    // The history has what this page missed, and energy that was settled after its tick.
    const isSettled = this.#unsettled < 0 || this.#unsettled % UNSETTLED_TICKS === UNSETTLED_TICKS - 1;
    if (missed || (column && isSettled)) this.refreshSeries();
    this.#unsettled = Math.max(0, this.#unsettled);
    this.#report();
  }

  async #readSeries() {
    const { signal } = this.#abort;
    const number = ++this.#seriesNumber;
    this.#seriesAsked = performance.now();
    try {
      const series = await read(this.#page.seriesPath(), signal);
      // The answer to an older question, about another range or container, is of no use.
      if (signal.aborted || number !== this.#seriesNumber) return;
      this.#seriesRead = performance.now();
      this.#seriesError = null;
      this.#page.onSeries(series);
    } catch (error) {
      if (signal.aborted || number !== this.#seriesNumber) return;
      this.#seriesError = error.message;
      this.#report();
    }
  }

  /** Once a second: notices silence, and what has become old. */
  #check() {
    const now = performance.now();
    const hasNow = this.#sequence !== null;
    const age = now - Math.max(this.#seriesRead, this.#seriesAsked);
    if (hasNow && !this.#recorded && age > SERIES_AGE) this.refreshSeries();
    const isMissing = this.#seriesRead === -Infinity || this.#seriesError !== null;
    if (hasNow && isMissing && age > MAX_DELAY) this.refreshSeries();
    const silence = Math.max(SILENCE, 10_000 * this.#tickSeconds);
    if (this.#events && now - this.#lastEvent > silence) this.#reconnect();
    this.#report();
  }

  #fail(message) {
    this.#error = message;
    this.#report();
  }

  #report() {
    const silent = (performance.now() - this.#lastNews) / 1000;
    const limit = Math.max(2, MISSED_TICKS * this.#tickSeconds);
    const refused = this.#refusals > 1 && this.#nowWorks;
    const isSilent = !this.#recorded && !refused && silent > limit;
    this.#page.onState({ silent: isSilent ? silent : 0, error: this.#error ?? this.#seriesError, refused });
  }
}
