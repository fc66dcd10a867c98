// Owns the page: title, time range, and Grafana's grid of panels and row headings.
import { css } from '@emotion/css';
import { dateTimeFormat, type GrafanaTheme2 } from '@grafana/data';
import { Icon, Text, useStyles2 } from '@grafana/ui';

import { PanelView } from './PanelView';
import type { PreparedPanel } from './preparePanel';
import type { DashboardContent, PanelModel } from './types';

const COLUMNS = 24;
const CELL_HEIGHT = 30;
const GAP = 8;
const PADDING = 16;

interface Props {
  content: DashboardContent;
  panels: PreparedPanel[];
  pageWidth: number;
}

function placeOf({ x, y, w, h }: PanelModel['gridPos'], gridWidth: number) {
  const columnWidth = (gridWidth - (COLUMNS - 1) * GAP) / COLUMNS;
  return {
    // Whole pixels keep text and chart lines sharp.
    left: Math.round(x * (columnWidth + GAP)),
    top: y * (CELL_HEIGHT + GAP),
    width: Math.round(w * columnWidth + (w - 1) * GAP),
    height: h * CELL_HEIGHT + (h - 1) * GAP,
  };
}

function RowHeading({ title }: { title: string }) {
  return (
    <Text element="h3" variant="h5">
      <Icon name="angle-down" /> {title}
    </Text>
  );
}

export function DashboardView({ content, panels, pageWidth }: Props) {
  const styles = useStyles2(getStyles);
  const places = panels.map(({ model }) => placeOf(model.gridPos, pageWidth - 2 * PADDING));
  const gridHeight = Math.max(0, ...places.map(({ top, height }) => top + height));
  const formatTime = (seconds: number) => dateTimeFormat(seconds * 1000, { timeZone: content.timeZone });

  return (
    <main className={styles.page}>
      <header className={styles.header}>
        <Text element="h1" variant="h3">
          {content.title}
        </Text>
        <Text color="secondary">
          {formatTime(content.range.from)} to {formatTime(content.range.to)}
        </Text>
      </header>
      <div className={styles.grid} style={{ height: gridHeight }}>
        {panels.map((panel, index) => (
          <div key={index} className={styles.cell} style={places[index]}>
            {panel.model.type === 'row' ? (
              <RowHeading title={panel.model.title ?? ''} />
            ) : (
              <PanelView
                panel={panel}
                index={index}
                timeZone={content.timeZone}
                width={places[index].width}
                height={places[index].height}
              />
            )}
          </div>
        ))}
      </div>
    </main>
  );
}

const getStyles = (theme: GrafanaTheme2) => ({
  page: css({ padding: PADDING, background: theme.colors.background.canvas }),
  header: css({ display: 'flex', alignItems: 'baseline', justifyContent: 'space-between', marginBottom: PADDING }),
  grid: css({ position: 'relative' }),
  cell: css({ position: 'absolute' }),
});
