// Owns the browser: shows the built page from dist/ without a web server and takes pictures.
import { access, readFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import puppeteer from 'puppeteer-core';
import sharp from 'sharp';

const DIST = fileURLToPath(new URL('../dist/', import.meta.url));
// Never resolved: every request of the page is answered here.
const ORIGIN = 'http://dashboards.invalid';
const PAGE_WIDTH = 1600;
const READY_TIMEOUT_MS = 120_000;
const MIME_TYPES = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
  '.woff2': 'font/woff2',
};

async function respond(request) {
  const { origin, pathname } = new URL(request.url());
  const file = path.join(DIST, pathname === '/' ? 'index.html' : decodeURIComponent(pathname));
  if (origin !== ORIGIN || !file.startsWith(DIST)) {
    return request.abort();
  }
  const body = await readFile(file).catch(() => undefined);
  const contentType = MIME_TYPES[path.extname(file)] ?? 'application/octet-stream';
  return request.respond(body ? { body, contentType } : { status: 404, body: '' });
}

// Charts need few colours: a palette makes the file two to three times smaller.
function savePicture(png, file) {
  return sharp(png).png({ palette: true, colours: 256, dither: 0, effort: 10 }).toFile(file);
}

async function draw(browser, content, file) {
  const page = await browser.newPage();
  try {
    await page.setViewport({ width: PAGE_WIDTH, height: 1000 });
    // A picture must not show unfinished animations of Grafana.
    await page.emulateMediaFeatures([{ name: 'prefers-reduced-motion', value: 'reduce' }]);
    await page.setRequestInterception(true);
    page.on('request', (request) =>
      respond(request).catch((error) => console.error(`${request.url()}: ${error.message}`)),
    );
    page.on('pageerror', (error) => console.error(`${content.title}: ${error.message}`));
    await page.goto(ORIGIN);
    const height = await page.evaluate((data) => window.drawDashboard(data), content);
    await page.setViewport({ width: PAGE_WIDTH, height });
    await page.waitForFunction('window.__ready === true', { timeout: READY_TIMEOUT_MS });
    const root = await page.$('#root');
    await savePicture(await root.screenshot(), file);
    return await page.evaluate(() => window.__panelErrors);
  } finally {
    await page.close();
  }
}

export async function openBrowser(executablePath) {
  await access(path.join(DIST, 'index.html')).catch(() => {
    throw new Error('the page is not built: run npm run build');
  });
  const isRoot = process.getuid?.() === 0;
  const browser = await puppeteer.launch({
    executablePath,
    args: [
      // Chromium refuses to start its sandbox as root.
      ...(isRoot ? ['--no-sandbox'] : []),
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--hide-scrollbars',
      '--font-render-hinting=none',
      '--force-color-profile=srgb',
    ],
  });
  return {
    draw: (content, file) => draw(browser, content, file),
    close: () => browser.close(),
  };
}
