// Owns the conversion of a panel's query results to frames that are ready to draw.
import { type DataFrame, type FieldConfigSource, type GrafanaTheme2, ThresholdsMode } from '@grafana/data';

import { applyFieldConfig } from './fieldConfig';
import { toFrames } from './frames';
import { panelKinds } from './panels';
import type { PanelKind } from './panels/kind';
import { transform } from './transformations';
import type { PanelContent } from './types';

export interface PreparedPanel extends PanelContent {
  kind?: PanelKind;
  frames: DataFrame[];
  fieldConfig: FieldConfigSource;
}

// Defaults of Grafana for options that a dashboard omits.
const GRAFANA_DEFAULTS = {
  mappings: [],
  color: { mode: 'thresholds' },
  thresholds: {
    mode: ThresholdsMode.Absolute,
    steps: [
      { value: -Infinity, color: 'green' },
      { value: 80, color: 'red' },
    ],
  },
};

function completeFieldConfig({ model }: PanelContent, kind: PanelKind): FieldConfigSource {
  const { defaults = {}, overrides = [] } = model.fieldConfig ?? {};
  return {
    defaults: {
      ...GRAFANA_DEFAULTS,
      ...kind.fieldDefaults,
      ...defaults,
      custom: { ...kind.fieldDefaults.custom, ...defaults.custom },
    },
    overrides,
  };
}

export async function preparePanel(
  content: PanelContent,
  theme: GrafanaTheme2,
  timeZone: string,
): Promise<PreparedPanel> {
  const kind = panelKinds[content.model.type ?? ''];
  if (!kind) {
    return { ...content, frames: [], fieldConfig: { defaults: {}, overrides: [] } };
  }
  const fieldConfig = completeFieldConfig(content, kind);
  try {
    const raw = await transform(toFrames(content.queries), content.model.transformations);
    return { ...content, kind, fieldConfig, frames: applyFieldConfig(raw, fieldConfig, theme, timeZone) };
  } catch (problem) {
    const message = problem instanceof Error ? problem.message : String(problem);
    return { ...content, kind, fieldConfig, frames: [], error: content.error ?? message };
  }
}
