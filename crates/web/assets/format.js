/*
 * Numbers, times and amounts of money as texts for people: three significant digits and an SI
 * prefix chosen by size, the rule of every view of Wattcast. An unknown value is a dash, never 0.
 */

/** The text of a value that is not known. */
export const UNKNOWN = "–";

/** Between a number and its unit: a line never breaks there. */
const SPACE = "\u00a0";

const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"]];

/** Currencies whose hundredth is called a cent. */
const WITH_CENTS = new Set(["EUR", "USD", "CAD", "AUD", "NZD"]);

/** True for a number that can be shown. */
export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** The largest prefix with which a size is at least one after rounding to three digits. */
function prefixOf(size) {
  return PREFIXES.find(([factor]) => size >= 0.9995 * factor) ?? PREFIXES[PREFIXES.length - 1];
}

/** Decimals that leave three significant digits of a size of at least one. */
function decimalsOf(size) {
  if (size >= 99.95) return 0;
  return size >= 9.995 ? 1 : 2;
}

const FIXED = [0, 1, 2, 3].map((decimals) => new Intl.NumberFormat("en", {
  minimumFractionDigits: decimals,
  maximumFractionDigits: decimals,
}));

/** A number with so many decimals and separated thousands. */
function fixed(value, decimals) {
  // The sum drops the sign of a negative zero.
  return FIXED[decimals].format(value + 0);
}

/** A number without a unit: CPUs, frames per second, `59.9`, `1,240`. */
export function plain(value) {
  if (!isNumber(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.005) return "< 0.01";
  return fixed(value, decimalsOf(size));
}

/** A whole number. */
export function count(value) {
  return isNumber(value) ? fixed(Math.round(value), 0) : UNKNOWN;
}

/** A value with its unit: `12.3 W`, `850 mW`, `1.39 kJ`. */
export function withUnit(value, unit) {
  if (!isNumber(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size === 0) return `0${SPACE}${unit}`;
  if (size < 5e-6) return `< 0.01${SPACE}m${unit}`;
  const [factor, prefix] = prefixOf(size);
  return `${fixed(value / factor, decimalsOf(size / factor))}${SPACE}${prefix}${unit}`;
}

/** Half the width of an interval, with the unit and the decimals that `withUnit` gives `value`. */
export function plusMinus(value, bound, unit) {
  if (!isNumber(value) || !isNumber(bound)) return UNKNOWN;
  if (value === 0) return `±${SPACE}${withUnit(bound, unit)}`;
  const [factor, prefix] = prefixOf(Math.abs(value));
  const decimals = decimalsOf(Math.abs(value) / factor);
  const scaled = bound / factor;
  const least = 10 ** -decimals;
  // A bound that rounds to zero is not zero.
  if (scaled > 0 && scaled < least / 2) return `± < ${fixed(least, decimals)}${SPACE}${prefix}${unit}`;
  return `±${SPACE}${fixed(scaled, decimals)}${SPACE}${prefix}${unit}`;
}

/** A part of one as a percentage: `57.4 %`, `< 0.1 %`. */
export function percent(share) {
  if (!isNumber(share)) return UNKNOWN;
  const value = share * 100;
  if (value > 0 && value < 0.05) return `< 0.1${SPACE}%`;
  return `${fixed(value, Math.abs(value) >= 99.95 ? 0 : 1)}${SPACE}%`;
}

/** An amount of money without the name of the currency, which the caption names. */
export function money(amount, currency) {
  if (!isNumber(amount)) return UNKNOWN;
  const size = Math.abs(amount);
  if (size === 0) return "0";
  if (!WITH_CENTS.has(currency) || size >= 0.995) {
    return size < 0.005 ? "< 0.01" : fixed(amount, decimalsOf(size));
  }
  return size < 0.000_05 ? `< 0.01${SPACE}ct` : `${fixed(amount * 100, decimalsOf(size * 100))}${SPACE}ct`;
}

/** A length of time in its two largest units. */
export function duration(seconds) {
  if (!isNumber(seconds)) return UNKNOWN;
  const whole = Math.max(0, Math.floor(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86_400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (whole >= 86_400) return `${days} d ${hours} h`;
  if (whole >= 3600) return `${hours} h ${minutes} min`;
  return whole >= 60 ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

const TIME = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const MINUTE = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat("sv", { year: "numeric", month: "2-digit", day: "2-digit" });

/** The local time of day of unix seconds, `14:03:12`; without seconds `14:03`. */
export function clock(unix, withSeconds = true) {
  if (!isNumber(unix)) return UNKNOWN;
  return (withSeconds ? TIME : MINUTE).format(unix * 1000);
}

/** The local date and time of unix seconds, `2026-11-30 14:03:12`. */
export function dateTime(unix) {
  return isNumber(unix) ? `${DAY.format(unix * 1000)} ${clock(unix)}` : UNKNOWN;
}
