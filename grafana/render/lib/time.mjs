// Owns time: a dashboard's range, and Grafana's duration notation. All values are seconds.
const UNITS = { ms: 0.001, s: 1, m: 60, h: 3600, d: 86400, w: 604800, M: 2592000, y: 31536000 };

/** "1h30m" and ">30s" become seconds; anything else becomes undefined. */
export function parseDuration(text) {
  const parts = [...String(text ?? '').matchAll(/(\d+(?:\.\d+)?)(ms|[smhdwMy])/g)];
  return parts.length ? parts.reduce((sum, [, count, unit]) => sum + count * UNITS[unit], 0) : undefined;
}

function parseInstant(text, now) {
  const relative = /^now(?:-(\d+\w+))?$/.exec(text);
  if (relative) {
    return now - (parseDuration(relative[1]) ?? 0);
  }
  const absolute = /^\d+$/.test(text) ? Number(text) : Date.parse(text);
  if (Number.isNaN(absolute)) {
    throw new Error(`cannot read the dashboard's time "${text}"; give --from and --to`);
  }
  return absolute / 1000;
}

export function resolveTimeRange(time, { from, to }) {
  if (from !== undefined) {
    return { from, to };
  }
  const now = Math.floor(Date.now() / 1000);
  return { from: parseInstant(time?.from ?? 'now-1h', now), to: parseInstant(time?.to ?? 'now', now) };
}

/** A panel may narrow the dashboard's range ("timeFrom") or move it back ("timeShift"). */
export function panelTimeRange(panel, range) {
  const shift = parseDuration(panel.timeShift) ?? 0;
  const length = parseDuration(panel.timeFrom) ?? range.to - range.from;
  return { from: range.to - length - shift, to: range.to - shift };
}
