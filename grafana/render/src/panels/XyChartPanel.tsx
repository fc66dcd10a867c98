// Owns the "xychart" panel. Grafana's own is in no package, so the points, axes and legend of its
// automatic mode are drawn here: the first column of numbers is the position, the second the height.
import { type DataFrame, type Field, FieldType, formattedValueToString, getFieldDisplayName } from '@grafana/data';
import { useTheme2 } from '@grafana/ui';

import { PanelMessage } from '../PanelMessage';
import type { PanelKind, PanelProps } from './kind';

const MARGIN = { top: 10, right: 24, bottom: 46, left: 86 };
const LEGEND_HEIGHT = 24;
const FONT_SIZE = 12;
const RADIUS = 4;
const MOST_STEPS = 6;

interface Series {
  name: string;
  color: string;
  x: Field;
  y: Field;
  points: Array<{ x: number; y: number }>;
}

interface Axis {
  min: number;
  max: number;
  ticks: number[];
}

function seriesOf(frame: DataFrame, color: string, frames: DataFrame[]): Series[] {
  const [x, y] = frame.fields.filter(({ type }) => type === FieldType.number);
  if (!x || !y) {
    return [];
  }
  const all = Array.from({ length: x.values.length }, (_, row) => ({ x: x.values[row], y: y.values[row] }));
  const points = all.filter((point) => Number.isFinite(point.x) && Number.isFinite(point.y));
  // The labels are those that distinguish the frames.
  const name = Object.values(y.labels ?? {}).join(' ') || getFieldDisplayName(y, frame, frames);
  return points.length ? [{ name, color, x, y, points }] : [];
}

/** Round steps from below the lowest to above the highest value. */
function axisOf(values: number[]): Axis {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / MOST_STEPS));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= MOST_STEPS) ?? span;
  const first = Math.floor(low / step);
  const last = Math.max(Math.ceil(high / step), first + 1);
  const ticks = Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
  return { min: first * step, max: last * step, ticks };
}

function format(field: Field, value: number): string {
  return field.display ? formattedValueToString(field.display(value)) : String(value);
}

function XyChartPanel({ frames, width, height }: PanelProps<unknown>) {
  const theme = useTheme2();
  const { palette, getColorByName } = theme.visualization;
  const series = frames.flatMap((frame, index) =>
    seriesOf(frame, getColorByName(palette[index % palette.length]), frames),
  );
  if (series.length === 0) {
    return <PanelMessage>No data</PanelMessage>;
  }

  const points = series.flatMap((one) => one.points);
  const across = axisOf(points.map(({ x }) => x));
  const up = axisOf(points.map(({ y }) => y));
  const right = width - MARGIN.right;
  const bottom = height - LEGEND_HEIGHT - MARGIN.bottom;
  const toX = (value: number) =>
    MARGIN.left + ((value - across.min) / (across.max - across.min)) * (right - MARGIN.left);
  const toY = (value: number) => bottom - ((value - up.min) / (up.max - up.min)) * (bottom - MARGIN.top);
  const [{ x, y }] = series;
  const middle = (MARGIN.top + bottom) / 2;

  return (
    <>
      <svg
        width={width}
        height={height - LEGEND_HEIGHT}
        fontFamily={theme.typography.fontFamily}
        fontSize={FONT_SIZE}
        fill={theme.colors.text.secondary}
      >
        {across.ticks.map((tick) => (
          <g key={tick}>
            <line x1={toX(tick)} x2={toX(tick)} y1={MARGIN.top} y2={bottom} stroke={theme.colors.border.weak} />
            <text x={toX(tick)} y={bottom + 18} textAnchor="middle">
              {format(x, tick)}
            </text>
          </g>
        ))}
        {up.ticks.map((tick) => (
          <g key={tick}>
            <line x1={MARGIN.left} x2={right} y1={toY(tick)} y2={toY(tick)} stroke={theme.colors.border.weak} />
            <text x={MARGIN.left - 8} y={toY(tick) + 4} textAnchor="end">
              {format(y, tick)}
            </text>
          </g>
        ))}
        <text x={(MARGIN.left + right) / 2} y={bottom + 38} textAnchor="middle">
          {getFieldDisplayName(x)}
        </text>
        <text x={16} y={middle} textAnchor="middle" transform={`rotate(-90 16 ${middle})`}>
          {getFieldDisplayName(y)}
        </text>
        {series.map((one) =>
          one.points.map((point, index) => (
            <circle
              key={`${one.name} ${index}`}
              cx={toX(point.x)}
              cy={toY(point.y)}
              r={RADIUS}
              fill={one.color}
              fillOpacity={0.5}
              stroke={one.color}
            />
          )),
        )}
      </svg>
      <div style={{ display: 'flex', gap: 16, height: LEGEND_HEIGHT, fontSize: FONT_SIZE, overflow: 'hidden' }}>
        {series.map((one) => (
          <span key={one.name}>
            <span style={{ color: one.color }}>●</span> {one.name}
          </span>
        ))}
      </div>
    </>
  );
}

export const xyChart: PanelKind = {
  component: XyChartPanel,
  options: {},
  fieldDefaults: {},
  saysNoData: false,
};
