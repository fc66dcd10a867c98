// Owns field options: defaults and overrides of a panel, applied to its data frames.
import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  type DataFrame,
  displayNameOverrideProcessor,
  type FieldConfigPropertyItem,
  FieldConfigOptionsRegistry,
  type FieldConfigSource,
  type GrafanaTheme2,
  identityOverrideProcessor,
  numberOverrideProcessor,
  stringOverrideProcessor,
  type ThresholdsConfig,
} from '@grafana/data';

import { replaceVariables } from './replaceVariables';

type Processor = FieldConfigPropertyItem['process'];

const STANDARD_OPTIONS: Record<string, Processor> = {
  unit: identityOverrideProcessor,
  decimals: numberOverrideProcessor,
  min: numberOverrideProcessor,
  max: numberOverrideProcessor,
  fieldMinMax: identityOverrideProcessor,
  displayName: displayNameOverrideProcessor,
  noValue: stringOverrideProcessor,
  color: identityOverrideProcessor,
  mappings: identityOverrideProcessor,
  thresholds: (value) => value && openThresholds(value),
};

// JSON cannot hold the first step's -Infinity and has null, which would compare as 0.
function openThresholds(thresholds: ThresholdsConfig): ThresholdsConfig {
  const [first, ...rest] = thresholds.steps;
  return first ? { ...thresholds, steps: [{ ...first, value: first.value ?? -Infinity }, ...rest] } : thresholds;
}

function option(id: string, path: string, isCustom: boolean, process: Processor): FieldConfigPropertyItem {
  return {
    id,
    path,
    isCustom,
    process,
    name: id,
    settings: { expandTemplateVars: true },
    shouldApply: () => true,
    editor: () => null,
    override: () => null,
  };
}

/**
 * applyFieldOverrides ignores every option that its registry does not list, including units, and
 * Grafana's own registry is not in npm. The custom options of a panel are read from its JSON instead
 * of being listed here.
 */
function registryFor({ defaults, overrides }: FieldConfigSource): FieldConfigOptionsRegistry {
  const overridden = overrides.flatMap(({ properties }) => properties.map(({ id }) => id));
  const custom = new Set([
    ...Object.keys(defaults.custom ?? {}),
    ...overridden.filter((id) => id.startsWith('custom.')).map((id) => id.slice('custom.'.length)),
  ]);
  return new FieldConfigOptionsRegistry(() => [
    ...Object.entries(STANDARD_OPTIONS).map(([id, process]) => option(id, id, false, process)),
    ...[...custom].map((path) => option(`custom.${path}`, path, true, identityOverrideProcessor)),
  ]);
}

export function applyFieldConfig(
  frames: DataFrame[],
  fieldConfig: FieldConfigSource,
  theme: GrafanaTheme2,
  timeZone: string,
): DataFrame[] {
  const applied = applyFieldOverrides({
    data: frames,
    fieldConfig,
    fieldConfigRegistry: registryFor(fieldConfig),
    replaceVariables,
    theme,
    timeZone,
  });
  // Tables read a column's name from this cache only.
  cacheFieldDisplayNames(applied);
  return applied;
}
