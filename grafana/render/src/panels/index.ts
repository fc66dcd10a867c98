// Owns the list of panel types that can be drawn.
import { barGauge } from './BarGaugePanel';
import type { PanelKind } from './kind';
import { stat } from './StatPanel';
import { table } from './TablePanel';
import { timeSeries } from './TimeSeriesPanel';
import { xyChart } from './XyChartPanel';

export const panelKinds: Record<string, PanelKind | undefined> = {
  bargauge: barGauge,
  stat,
  table,
  timeseries: timeSeries,
  xychart: xyChart,
};
