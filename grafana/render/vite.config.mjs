// Owns the build: one page in dist/ that needs no server and no network.
import { cp, mkdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';

const inProject = (path) => fileURLToPath(new URL(path, import.meta.url));

// Grafana's components fetch icons and fonts from these addresses at run time, so no
// import makes the bundler see them. Grafana's own fonts are not in npm; Inter is.
const ASSETS = {
  'node_modules/@grafana/ui/dist/public/img/icons': 'dist/public/build/img/icons',
  'node_modules/inter-ui/web/Inter-Regular.woff2': 'dist/public/fonts/inter/Inter-Regular.woff2',
  'node_modules/inter-ui/web/Inter-Medium.woff2': 'dist/public/fonts/inter/Inter-Medium.woff2',
};

const grafanaAssets = {
  name: 'grafana-assets',
  async closeBundle() {
    await mkdir(inProject('dist/public/fonts/inter'), { recursive: true });
    for (const [from, to] of Object.entries(ASSETS)) {
      await cp(inProject(from), inProject(to), { recursive: true });
    }
  },
};

export default defineConfig({
  plugins: [react(), grafanaAssets],
  build: {
    target: 'es2022',
    // Read from disk by a local browser; the size does not matter.
    chunkSizeWarningLimit: 20_000,
  },
});
