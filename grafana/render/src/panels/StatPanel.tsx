// Owns the "stat" panel.
import {
  type DisplayValueAlignmentFactors,
  type FieldDisplay,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  VizOrientation,
} from '@grafana/data';
import type { ReduceDataOptions, SingleStatBaseOptions } from '@grafana/schema';
import { defaultOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import {
  BigValue,
  type BigValueColorMode,
  BigValueGraphMode,
  type BigValueJustifyMode,
  BigValueTextMode,
  useTheme2,
  VizRepeater,
} from '@grafana/ui';
import type { ComponentProps } from 'react';

import { replaceVariables } from '../replaceVariables';
import type { PanelKind, PanelProps } from './kind';
import { completeReduceOptions } from './reduceOptions';

interface Options extends Pick<SingleStatBaseOptions, 'text'> {
  colorMode: BigValueColorMode;
  graphMode: BigValueGraphMode;
  justifyMode: BigValueJustifyMode;
  textMode: BigValueTextMode;
  orientation: VizOrientation;
  percentChangeColorMode: ComponentProps<typeof BigValue>['percentChangeColorMode'];
  reduceOptions?: Partial<ReduceDataOptions>;
  showPercentChange: boolean;
  wideLayout: boolean;
}

function StatPanel({ frames, fieldConfig, options, title, width, height, timeRange, timeZone }: PanelProps<Options>) {
  const theme = useTheme2();
  const hasOwnName = Boolean(fieldConfig.defaults.displayName) || !title;
  const textMode =
    options.textMode === BigValueTextMode.Auto && hasOwnName ? BigValueTextMode.ValueAndName : options.textMode;
  const getValues = () =>
    getFieldDisplayValues({
      data: frames,
      fieldConfig,
      reduceOptions: completeReduceOptions(options.reduceOptions),
      replaceVariables,
      sparkline: options.graphMode !== BigValueGraphMode.None,
      percentChange: options.showPercentChange,
      theme,
      timeZone,
    });

  return (
    <VizRepeater<FieldDisplay, DisplayValueAlignmentFactors>
      source={frames}
      getValues={getValues}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderCounter={0}
      width={width}
      height={height}
      itemSpacing={3}
      orientation={options.orientation}
      autoGrid
      renderValue={({ value, alignmentFactors, width, height, count }) => (
        <BigValue
          value={value.display}
          count={count}
          sparkline={value.sparkline && { ...value.sparkline, timeRange }}
          colorMode={options.colorMode}
          graphMode={options.graphMode}
          justifyMode={options.justifyMode}
          textMode={textMode}
          percentChangeColorMode={options.percentChangeColorMode}
          disableWideLayout={!options.wideLayout}
          alignmentFactors={alignmentFactors}
          text={options.text}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    />
  );
}

export const stat: PanelKind = {
  component: StatPanel,
  options: { ...defaultOptions, orientation: VizOrientation.Auto },
  fieldDefaults: {},
  saysNoData: true,
};
