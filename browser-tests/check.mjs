#!/usr/bin/env node
// Opens pages in Chromium and prints what was found, as JSON. It judges nothing: the tests do.
//
// Standard input: {"out": DIR | null, "pages": [{"name", "url", "width", "height", "scheme", "ready",
// "settle_ms", "evaluate", "sandboxed", "full", "shot"}]}. `ready` is an expression that is true once the page shows
// data; `settle_ms` the time to wait afterwards; `evaluate` an expression whose value is returned;
// `shot` false leaves the picture out. Standard output: a list of {"name", "status", "ready_ms",
// "errors", "overflow", "axe", "value"}.
import { readFile, mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';

import puppeteer from 'puppeteer-core';

// For Chromium to start, a page, and its data: on a loaded machine each takes many times longer.
const TIMEOUT_MS = 180_000;
const input = JSON.parse(await readFile('/dev/stdin', 'utf8'));
const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
if (input.out) await mkdir(input.out, { recursive: true });

// Elements that make the document wider than the window.
const tooWide = () => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  const describe = (element) => `${element.tagName.toLowerCase()}.${element.className} (${Math.round(element.getBoundingClientRect().right)} px)`;
  const scrolls = (element) => element && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
  const isBeyond = (element) => element.getBoundingClientRect().right > width + 0.5 && !scrolls(element.parentElement);
  const beyond = [...document.querySelectorAll('body *')].filter(isBeyond);
  return beyond.length > 0 ? beyond.slice(0, 5).map(describe) : [`document of ${document.documentElement.scrollWidth} px`];
};

async function check(browser, wanted) {
  const page = await browser.newPage();
  const errors = [];
  page.on('console', (message) => {
    if (['error', 'warn'].includes(message.type())) errors.push(`${message.type()}: ${message.text()} ${message.location().url ?? ''}`);
  });
  page.on('pageerror', (error) => errors.push(`exception: ${error.message}`));
  page.on('dialog', (dialog) => { errors.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  // A page whose policy is a sandbox runs no scripts, also not those of this check.
  if (wanted.sandboxed) await page.setBypassCSP(true);
  page.on('requestfailed', (request) => errors.push(`request failed: ${request.url()} ${request.failure()?.errorText}`));
  try {
    await page.setViewport({ width: wanted.width ?? 1280, height: wanted.height ?? 900, isMobile: (wanted.width ?? 1280) < 500, hasTouch: (wanted.width ?? 1280) < 500 });
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: wanted.scheme ?? 'light' }]);
    const start = performance.now();
    const response = await page.goto(wanted.url, { waitUntil: 'load', timeout: TIMEOUT_MS });
    if (wanted.ready) await page.waitForFunction(wanted.ready, { timeout: TIMEOUT_MS, polling: 20 });
    const ready = performance.now() - start;
    if (wanted.settle_ms) await new Promise((resolve) => setTimeout(resolve, wanted.settle_ms));
    const value = wanted.evaluate ? await page.evaluate(wanted.evaluate) : null;
    const overflow = await page.evaluate(tooWide);
    // Through the debugger, because the policy of the page allows no scripts of others.
    const client = await page.createCDPSession();
    await client.send('Runtime.evaluate', { expression: axe });
    const found = await page.evaluate(() => axe.run(document, { resultTypes: ['violations'] }));
    const serious = found.violations.filter((violation) => ['serious', 'critical'].includes(violation.impact));
    const findings = serious.map((violation) => `${violation.id}: ${violation.nodes.slice(0, 3).map((node) => node.html.slice(0, 120)).join(' | ')}`);
    if (input.out && wanted.shot !== false) await page.screenshot({ path: path.join(input.out, `${wanted.name}.png`), fullPage: wanted.full ?? false });
    // A copy: closing the page aborts its open requests.
    return { name: wanted.name, status: response.status(), ready_ms: Math.round(ready), errors: [...errors], overflow, axe: findings, value };
  } catch (error) {
    errors.push(`error: ${error.message}`);
    if (input.out) await page.screenshot({ path: path.join(input.out, `${wanted.name}-failed.png`) }).catch(() => {});
    return { name: wanted.name, status: 0, ready_ms: null, errors: [...errors], overflow: [], axe: [], value: null };
  } finally {
    await page.close();
  }
}

const browser = await puppeteer.launch({
  executablePath: input.chromium ?? '/usr/bin/chromium',
  timeout: TIMEOUT_MS,
  protocolTimeout: 2 * TIMEOUT_MS,
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--force-color-profile=srgb', '--hide-scrollbars'],
});
try {
  const found = [];
  for (const page of input.pages) found.push(await check(browser, page));
  console.log(JSON.stringify(found, null, 1));
} finally {
  await browser.close();
}
