// Owns the "timeseries" panel.
import { applyNullInsertThreshold, type DataFrame, FieldColorModeId, FieldType, type TimeRange } from '@grafana/data';
import {
  AxisColorMode,
  AxisPlacement,
  GraphDrawStyle,
  GraphGradientMode,
  GraphThresholdsStyleMode,
  LegendDisplayMode,
  LineInterpolation,
  ScaleDistribution,
  StackingMode,
  type VizLegendOptions,
  VisibilityMode,
} from '@grafana/schema';
import { TimeSeries } from '@grafana/ui';
import { useMemo } from 'react';

import type { PanelKind, PanelProps } from './kind';

interface Options {
  legend: VizLegendOptions;
}

// The chart's scale breaks on NaN and infinity; Grafana draws them as gaps too.
function withoutInfinities(frame: DataFrame): DataFrame {
  return {
    ...frame,
    fields: frame.fields.map((field) =>
      field.type === FieldType.number
        ? { ...field, values: field.values.map((value) => (Number.isFinite(value) ? value : null)) }
        : field,
    ),
  };
}

function isGraphable(frame: DataFrame): boolean {
  const has = (type: FieldType) => frame.fields.some((field) => field.type === type);
  return has(FieldType.time) && has(FieldType.number);
}

// The chart itself does this for the first frame only.
function withGaps(frame: DataFrame, { from, to }: TimeRange): DataFrame {
  return applyNullInsertThreshold({ frame, refFieldPseudoMin: from.valueOf(), refFieldPseudoMax: to.valueOf() });
}

// Grafana gives a legend below the chart 35 % and a scroll bar, which a picture does not have.
const LEGEND_MAX_HEIGHT = '45%';
const DEFAULT_LEGEND: VizLegendOptions = {
  showLegend: true,
  displayMode: LegendDisplayMode.List,
  placement: 'bottom',
  calcs: [],
};

function TimeSeriesPanel({ frames, options, width, height, timeRange, timeZone }: PanelProps<Options>) {
  const graphable = useMemo(
    () => frames.filter(isGraphable).map((frame) => withGaps(withoutInfinities(frame), timeRange)),
    [frames, timeRange],
  );
  const legend = useMemo(
    () => ({ ...DEFAULT_LEGEND, maxHeight: LEGEND_MAX_HEIGHT, ...options.legend }),
    [options.legend],
  );
  if (graphable.length === 0) {
    throw new Error('no time field in the data');
  }
  return (
    <TimeSeries
      frames={graphable}
      structureRev={1}
      timeRange={timeRange}
      timeZone={timeZone}
      width={width}
      height={height}
      legend={legend}
    />
  );
}

export const timeSeries: PanelKind = {
  component: TimeSeriesPanel,
  options: {},
  fieldDefaults: {
    color: { mode: FieldColorModeId.PaletteClassic },
    custom: {
      axisBorderShow: false,
      axisColorMode: AxisColorMode.Text,
      axisPlacement: AxisPlacement.Auto,
      barAlignment: 0,
      barWidthFactor: 0.6,
      drawStyle: GraphDrawStyle.Line,
      fillOpacity: 0,
      gradientMode: GraphGradientMode.None,
      hideFrom: { legend: false, tooltip: false, viz: false },
      lineInterpolation: LineInterpolation.Linear,
      lineWidth: 1,
      pointSize: 5,
      scaleDistribution: { type: ScaleDistribution.Linear },
      showPoints: VisibilityMode.Auto,
      spanNulls: false,
      stacking: { group: 'A', mode: StackingMode.None },
      thresholdsStyle: { mode: GraphThresholdsStyleMode.Off },
    },
  },
  saysNoData: false,
};
