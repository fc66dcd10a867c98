#!/usr/bin/env node
// Owns the command line: reads, queries and draws dashboards, prints one line per panel and sets
// the exit status.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';

import { readArguments } from './lib/arguments.mjs';
import { openBrowser } from './lib/browser.mjs';
import { layOutPanels, readDashboards } from './lib/dashboards.mjs';
import { Prometheus } from './lib/prometheus.mjs';
import { queryPanel } from './lib/queries.mjs';
import { resolveTimeRange } from './lib/time.mjs';
import { interpolateModel, resolveVariables } from './lib/variables.mjs';

const options = readArguments(process.argv.slice(2));
const prometheus = new Prometheus(options.prometheus);
let failed = false;

function report(uid, title, outcome) {
  const oneLine = (text) => String(text).replace(/\s+/g, ' ').trim();
  failed ||= outcome.startsWith('error');
  console.log([uid, oneLine(title), oneLine(outcome)].join('\t'));
}

async function gatherPanel(panel, range, variables) {
  const outcome =
    panel.type === 'row' ? { queries: [] } : await queryPanel(panel, range, variables, prometheus, options);
  return { model: interpolateModel(panel, variables), range, ...outcome };
}

async function drawDashboard(browser, uid, dashboard) {
  if (!Array.isArray(dashboard.panels)) {
    throw new Error('not a classic-model dashboard: it has no "panels" list');
  }
  const range = resolveTimeRange(dashboard.time, options);
  const variables = await resolveVariables(dashboard.templating?.list ?? [], options.variables, prometheus, range);
  const panels = [];
  for (const panel of layOutPanels(dashboard.panels)) {
    panels.push(await gatherPanel(panel, range, variables));
  }

  const page = {
    title: interpolateModel(dashboard.title ?? uid, variables),
    timeZone: dashboard.timezone || 'browser',
    theme: options.theme,
    range,
    panels,
  };
  const drawErrors = await browser.draw(page, path.join(options.out, `${uid}.png`));

  panels.forEach(({ model, seriesCount, error }, index) => {
    if (model.type !== 'row') {
      const message = error ?? drawErrors[index];
      report(
        uid,
        model.title || `(panel ${model.id ?? index})`,
        message ? `error: ${message}` : String(seriesCount || 'empty'),
      );
    }
  });
}

async function drawAll() {
  const all = await readDashboards(options.dashboards);
  const wanted = all.filter(({ uid }) => !options.only || uid === options.only);
  if (wanted.length === 0) {
    throw new Error(`no dashboard to draw in ${options.dashboards}`);
  }
  await mkdir(options.out, { recursive: true });
  const browser = await openBrowser(options.chromium);
  try {
    for (const { uid, dashboard, error } of wanted) {
      try {
        if (error) {
          throw error;
        }
        await drawDashboard(browser, uid, dashboard);
      } catch (problem) {
        report(uid, '(dashboard)', `error: ${problem.message}`);
      }
    }
  } finally {
    await browser.close();
  }
}

try {
  await drawAll();
  process.exitCode = failed ? 1 : 0;
} catch (problem) {
  console.error(problem.message);
  process.exitCode = 2;
}
