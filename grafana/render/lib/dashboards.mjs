// Owns dashboard files: reading them and putting their panels in drawing order.
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';

/** Every *.json of a folder; a file that cannot be read yields an error in its place. */
export async function readDashboards(folder) {
  const files = (await readdir(folder)).filter((file) => file.endsWith('.json')).sort();
  return Promise.all(
    files.map(async (file) => {
      const name = path.basename(file, '.json');
      try {
        const json = JSON.parse(await readFile(path.join(folder, file), 'utf8'));
        // The HTTP API wraps the model in "dashboard"; an exported file does not.
        const dashboard = json.dashboard ?? json;
        return { uid: safeFileName(dashboard.uid || name), dashboard };
      } catch (error) {
        return { uid: safeFileName(name), error };
      }
    }),
  );
}

// The uid becomes a file name, and a dashboard file may hold anything.
function safeFileName(uid) {
  return String(uid).replace(/[^\w.-]/g, '_');
}

/**
 * A flat list of panels and row headings. Collapsed rows are expanded, because a picture has no
 * interaction; the panels below them move down.
 */
export function layOutPanels(panels) {
  const placed = [];
  let shift = 0;
  for (const panel of [...panels].sort(byPosition)) {
    const y = position(panel).y + shift;
    placed.push(moveTo(panel, y));
    if (panel.type === 'row' && panel.panels?.length) {
      const children = [...panel.panels].sort(byPosition);
      const top = position(children[0]).y;
      const bottom = Math.max(...children.map((child) => position(child).y + position(child).h));
      placed.push(...children.map((child) => moveTo(child, y + 1 + position(child).y - top)));
      shift += bottom - top;
    }
  }
  return placed;
}

function position(panel) {
  return { x: 0, y: 0, w: 12, h: 8, ...panel.gridPos };
}

function byPosition(a, b) {
  return position(a).y - position(b).y || position(a).x - position(b).x;
}

function moveTo(panel, y) {
  const { panels: _nested, ...rest } = panel;
  return { ...rest, gridPos: { ...position(panel), y } };
}
