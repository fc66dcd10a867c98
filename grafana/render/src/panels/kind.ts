// Owns the description of a panel type.
import type { DataFrame, FieldConfig, FieldConfigSource, TimeRange } from '@grafana/data';
import type { ComponentType } from 'react';

export interface PanelProps<Options> {
  frames: DataFrame[];
  fieldConfig: FieldConfigSource;
  options: Options;
  title: string;
  width: number;
  height: number;
  timeRange: TimeRange;
  timeZone: string;
}

// A dashboard's options come from JSON: each panel trusts them to have its own type.
type AnyOptions = any;

export interface PanelKind {
  component: ComponentType<PanelProps<AnyOptions>>;
  options: Record<string, unknown>;
  fieldDefaults: FieldConfig;
  /** True if the panel itself shows "No data", as Grafana's stat and bar gauge do. */
  saysNoData: boolean;
}
