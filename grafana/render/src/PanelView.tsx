// Owns one panel of the page: frame, title and content.
import { dateTime, type TimeRange } from '@grafana/data';
import { PanelChrome } from '@grafana/ui';
import { useMemo } from 'react';

import { PanelBoundary } from './PanelBoundary';
import { PanelMessage } from './PanelMessage';
import type { PreparedPanel } from './preparePanel';
import type { SecondsRange } from './types';

interface Props {
  panel: PreparedPanel;
  index: number;
  timeZone: string;
  width: number;
  height: number;
}

function toTimeRange({ from, to }: SecondsRange): TimeRange {
  const range = { from: dateTime(from * 1000), to: dateTime(to * 1000) };
  return { ...range, raw: range };
}

function PanelBody({ panel, timeZone, width, height }: Omit<Props, 'index'>) {
  const { kind, model, frames, fieldConfig, range, error } = panel;
  const timeRange = useMemo(() => toTimeRange(range), [range]);
  if (!kind) {
    return <PanelMessage>{`Panel type "${model.type ?? 'none'}" is not drawn here`}</PanelMessage>;
  }
  const isEmpty = frames.every((frame) => frame.length === 0);
  if (isEmpty && error) {
    return <PanelMessage isError>{error}</PanelMessage>;
  }
  if (isEmpty && !kind.saysNoData) {
    return <PanelMessage>{fieldConfig.defaults.noValue ?? 'No data'}</PanelMessage>;
  }
  const Panel = kind.component;
  return (
    <Panel
      frames={frames}
      fieldConfig={fieldConfig}
      options={{ ...kind.options, ...model.options }}
      title={model.title ?? ''}
      width={width}
      height={height}
      timeRange={timeRange}
      timeZone={timeZone}
    />
  );
}

export function PanelView({ panel, index, timeZone, width, height }: Props) {
  const { model, error } = panel;
  return (
    <PanelChrome
      width={width}
      height={height}
      title={model.title}
      description={model.description}
      displayMode={model.transparent ? 'transparent' : 'default'}
      hoverHeader={!model.title}
      statusMessage={error}
    >
      {(innerWidth, innerHeight) => (
        <PanelBoundary index={index}>
          <PanelBody panel={panel} timeZone={timeZone} width={innerWidth} height={innerHeight} />
        </PanelBoundary>
      )}
    </PanelChrome>
  );
}
