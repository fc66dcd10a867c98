// Owns the "bargauge" panel.
import {
  type DisplayValueAlignmentFactors,
  type FieldDisplay,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  type ReduceDataOptions,
  VizOrientation,
} from '@grafana/data';
import { BarGaugeDisplayMode } from '@grafana/schema';
import {
  defaultOptions,
  type Options as BarGaugeOptions,
} from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import { BarGauge, useTheme2, VizRepeater } from '@grafana/ui';

import { replaceVariables } from '../replaceVariables';
import type { PanelKind, PanelProps } from './kind';
import { completeReduceOptions } from './reduceOptions';

interface Options extends Omit<BarGaugeOptions, 'orientation' | 'reduceOptions'> {
  orientation: VizOrientation;
  reduceOptions?: Partial<ReduceDataOptions>;
}

function BarGaugePanel({ frames, fieldConfig, options, width, height, timeZone }: PanelProps<Options>) {
  const theme = useTheme2();
  const itemSpacing = options.displayMode === BarGaugeDisplayMode.Lcd ? 2 : 10;
  const getValues = () =>
    getFieldDisplayValues({
      data: frames,
      fieldConfig,
      reduceOptions: completeReduceOptions(options.reduceOptions),
      replaceVariables,
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
      minVizWidth={options.minVizWidth}
      minVizHeight={options.minVizHeight}
      maxVizHeight={options.maxVizHeight}
      itemSpacing={itemSpacing}
      orientation={options.orientation}
      renderValue={({ value, alignmentFactors, orientation, width, height, count }) => (
        <BarGauge
          // A lone bar is named by the panel's title, unless the dashboard names it.
          value={
            count === 1 && !fieldConfig.defaults.displayName ? { ...value.display, title: undefined } : value.display
          }
          field={value.field}
          display={value.colIndex === undefined ? undefined : value.view?.getFieldDisplayProcessor(value.colIndex)}
          alignmentFactors={count > 1 ? alignmentFactors : undefined}
          displayMode={options.displayMode}
          showUnfilled={options.showUnfilled}
          valueDisplayMode={options.valueMode}
          namePlacement={options.namePlacement}
          text={options.text}
          orientation={orientation}
          itemSpacing={itemSpacing}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    />
  );
}

export const barGauge: PanelKind = {
  component: BarGaugePanel,
  options: { ...defaultOptions, orientation: VizOrientation.Auto },
  fieldDefaults: {},
  saysNoData: true,
};
