// Owns the "table" panel.
import { getFrameDisplayName } from '@grafana/data';
import { defaultTableFieldOptions, TableCellDisplayMode } from '@grafana/schema';
import {
  defaultOptions,
  type Options,
} from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import { Text } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

import type { PanelKind, PanelProps } from './kind';

const CAPTION_HEIGHT = 24;

function TablePanel({ frames, fieldConfig, options, width, height, timeRange }: PanelProps<Options>) {
  const index = Math.min(options.frameIndex, frames.length - 1);
  const frame = frames[index];
  // Grafana offers a menu of the other frames below the table.
  const hasCaption = frames.length > 1;
  const tableHeight = hasCaption ? height - CAPTION_HEIGHT : height;
  return (
    <>
      {/* The grid fills its parent and ignores its own height. */}
      <div style={{ height: tableHeight }}>
        <TableNG
          data={frame}
          fieldConfig={fieldConfig}
          width={width}
          height={tableHeight}
          noHeader={!options.showHeader}
          showTypeIcons={options.showTypeIcons}
          sortBy={options.sortBy}
          cellHeight={options.cellHeight}
          maxRowHeight={options.maxRowHeight}
          enablePagination={options.enablePagination}
          frozenColumns={options.frozenColumns?.left}
          noValue={fieldConfig.defaults.noValue}
          timeRange={timeRange}
          structureRev={1}
          enableVirtualization={false}
        />
      </div>
      {hasCaption && (
        <Text variant="bodySmall" color="secondary">
          {getFrameDisplayName(frame, index)} ({index + 1} of {frames.length} tables)
        </Text>
      )}
    </>
  );
}

export const table: PanelKind = {
  component: TablePanel,
  options: { ...defaultOptions },
  fieldDefaults: { custom: { ...defaultTableFieldOptions, cellOptions: { type: TableCellDisplayMode.Auto } } },
  saysNoData: false,
};
