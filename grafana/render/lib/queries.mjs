// Owns a panel's queries: step, built-in variables, and the results for the page.
import { panelTimeRange, parseDuration } from './time.mjs';
import { interpolateQuery } from './variables.mjs';

const POINTS_PER_RANGE = 300;

function stepOf(range, minimums) {
  const known = minimums.filter((seconds) => seconds !== undefined);
  return Math.max(Math.ceil((range.to - range.from) / POINTS_PER_RANGE), ...known);
}

function builtIns(range, step, scrapeInterval) {
  const length = Math.round(range.to - range.from);
  return {
    __interval: `${step}s`,
    __interval_ms: String(step * 1000),
    __rate_interval: `${4 * Math.max(step, scrapeInterval)}s`,
    __range: `${length}s`,
    __range_s: String(length),
    __range_ms: String(length * 1000),
    __from: String(Math.round(range.from * 1000)),
    __to: String(Math.round(range.to * 1000)),
  };
}

async function runTarget(target, panel, range, variables, prometheus, { scrapeInterval }) {
  const step = stepOf(range, [scrapeInterval, parseDuration(panel.interval), parseDuration(target.interval)]);
  const interpolate = (text) => interpolateQuery(text, variables, builtIns(range, step, scrapeInterval));
  const expr = interpolate(target.expr);
  const common = {
    refId: target.refId,
    expr,
    legendFormat: interpolate(target.legendFormat ?? ''),
    format: target.format ?? 'time_series',
  };
  const answers = [];
  if (target.range ?? !target.instant) {
    // Multiples of the step keep the points in place between drawings, as in Grafana.
    const align = (seconds) => Math.floor(seconds / step) * step;
    const data = await prometheus.queryRange(expr, align(range.from), align(range.to), step);
    answers.push({ ...common, stepMs: step * 1000, data });
  }
  if (target.instant) {
    answers.push({ ...common, data: await prometheus.query(expr, range.to) });
  }
  return answers;
}

function countSeries({ data }) {
  return data.resultType === 'vector' || data.resultType === 'matrix' ? data.result.length : 1;
}

/** Runs every visible target; a failed one does not affect the results of the others. */
export async function queryPanel(panel, dashboardRange, variables, prometheus, options) {
  const range = panelTimeRange(panel, dashboardRange);
  const queries = [];
  let error;
  for (const target of panel.targets ?? []) {
    if (target.hide || !target.expr) {
      continue;
    }
    try {
      queries.push(...(await runTarget(target, panel, range, variables, prometheus, options)));
    } catch (problem) {
      error ??= problem.message;
    }
  }
  return { range, queries, error, seriesCount: queries.reduce((sum, query) => sum + countSeries(query), 0) };
}
