// Owns the page's entry: lib/browser.mjs calls window.drawDashboard and waits for window.__ready.
import { createTheme, ThemeContext } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { GlobalStyles } from '@grafana/ui';
import type { ReactNode } from 'react';
import { createRoot } from 'react-dom/client';

import { DashboardView } from './DashboardView';
import { preparePanel } from './preparePanel';
import { loadFonts, settle } from './settle';
import type { DashboardContent } from './types';

window.__ready = false;
window.__panelErrors = {};

/** Waits until the page is stable in a window that shows all of it. */
async function finish(root: HTMLElement) {
  // Tables draw only visible cells, so the window must show the whole page.
  while (window.innerHeight < root.offsetHeight) {
    await new Promise((resolve) => window.addEventListener('resize', resolve, { once: true }));
  }
  await settle(root);
  window.__ready = true;
}

async function draw(content: DashboardContent) {
  const root = document.getElementById('root')!;
  const theme = createTheme({ colors: { mode: content.theme } });
  await initPluginTranslations('dashboard-png');

  const reactRoot = createRoot(root);
  const show = (page: ReactNode) =>
    reactRoot.render(
      <ThemeContext.Provider value={theme}>
        <GlobalStyles />
        {page}
      </ThemeContext.Provider>,
    );

  // The fonts are declared in the global styles, so those come first.
  show(null);
  await settle(document.head);
  await loadFonts();

  const panels = await Promise.all(content.panels.map((panel) => preparePanel(panel, theme, content.timeZone)));
  panels.forEach(({ error }, index) => {
    if (error) {
      window.__panelErrors[index] = error;
    }
  });
  show(<DashboardView content={content} panels={panels} pageWidth={window.innerWidth} />);
  await settle(root);
  void finish(root);
  return root.offsetHeight;
}

window.drawDashboard = draw;
