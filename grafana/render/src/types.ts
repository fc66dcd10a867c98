// Owns the data that draw.mjs hands to the page.
import type { DataTransformerConfig, FieldConfigSource } from '@grafana/data';

/** Unix seconds. */
export interface SecondsRange {
  from: number;
  to: number;
}

export interface PanelModel {
  id?: number;
  type?: string;
  title?: string;
  description?: string;
  transparent?: boolean;
  gridPos: { x: number; y: number; w: number; h: number };
  options?: Record<string, unknown>;
  fieldConfig?: Partial<FieldConfigSource>;
  transformations?: DataTransformerConfig[];
}

type Sample = [seconds: number, value: string];

export interface PrometheusSeries {
  metric: Record<string, string>;
  value?: Sample;
  values?: Sample[];
}

export type PrometheusData =
  | { resultType: 'matrix' | 'vector'; result: PrometheusSeries[] }
  | { resultType: 'scalar' | 'string'; result: Sample };

export interface QueryAnswer {
  refId: string;
  expr: string;
  legendFormat: string;
  format: string;
  /** Only a range query has a step. */
  stepMs?: number;
  data: PrometheusData;
}

export interface PanelContent {
  model: PanelModel;
  range: SecondsRange;
  queries: QueryAnswer[];
  error?: string;
}

export interface DashboardContent {
  title: string;
  timeZone: string;
  theme: 'dark' | 'light';
  range: SecondsRange;
  panels: PanelContent[];
}

declare global {
  interface Window {
    /** Returns the height of the page, which the window must get. */
    drawDashboard: (content: DashboardContent) => Promise<number>;
    /** True once the page is stable and can be captured. */
    __ready: boolean;
    /** Drawing errors by index in DashboardContent.panels. */
    __panelErrors: Record<number, string>;
  }
}
