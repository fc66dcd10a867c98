// Owns the step from Prometheus answers to Grafana data frames, shaped and named as
// Grafana's Prometheus data source does it.
import { type DataFrame, type Field, FieldType, type Labels } from '@grafana/data';

import type { PrometheusData, PrometheusSeries, QueryAnswer } from './types';

function seriesOf(data: PrometheusData): PrometheusSeries[] {
  switch (data.resultType) {
    case 'matrix':
    case 'vector':
      return data.result;
    default:
      return [{ metric: {}, value: data.result }];
  }
}

function samplesOf(series: PrometheusSeries) {
  const samples = series.values ?? (series.value ? [series.value] : []);
  return {
    times: samples.map(([seconds]) => seconds * 1000),
    numbers: samples.map(([, text]) => parseNumber(text)),
  };
}

function parseNumber(text: string): number {
  return text.endsWith('Inf') ? (text.startsWith('-') ? -Infinity : Infinity) : Number(text);
}

function metricName({ __name__: name = '', ...labels }: Labels): string {
  const pairs = Object.entries(labels).map(([key, value]) => `${key}="${value}"`);
  return `${name}{${pairs.join(', ')}}`;
}

function seriesName(labels: Labels, { legendFormat, expr }: QueryAnswer): string | undefined {
  if (legendFormat === '__auto') {
    // Undefined leaves the name to @grafana/data, which shows the labels that differ.
    return Object.keys(labels).length ? undefined : expr;
  }
  if (legendFormat) {
    return legendFormat.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label: string) => labels[label] ?? '');
  }
  const name = metricName(labels);
  return name === '{}' ? expr : name;
}

function timeField(values: number[], stepMs?: number): Field<number> {
  // The interval lets charts break the line where points are missing.
  return { name: 'Time', type: FieldType.time, config: stepMs ? { interval: stepMs } : {}, values };
}

function seriesFrame(series: PrometheusSeries, query: QueryAnswer): DataFrame {
  const { times, numbers } = samplesOf(series);
  const name = seriesName(series.metric, query);
  return {
    refId: query.refId,
    name,
    length: times.length,
    fields: [
      timeField(times, query.stepMs),
      {
        name: 'Value',
        type: FieldType.number,
        labels: series.metric,
        config: { displayNameFromDS: name },
        values: numbers,
      },
    ],
  };
}

function tableFrame(query: QueryAnswer, valueName: string): DataFrame {
  const allSeries = seriesOf(query.data);
  const labelNames = [...new Set(allSeries.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const times: number[] = [];
  const numbers: number[] = [];
  const labelValues: string[][] = labelNames.map(() => []);
  for (const series of allSeries) {
    const samples = samplesOf(series);
    times.push(...samples.times);
    numbers.push(...samples.numbers);
    labelNames.forEach((name, index) => {
      labelValues[index].push(...samples.times.map(() => series.metric[name] ?? ''));
    });
  }
  return {
    refId: query.refId,
    length: times.length,
    fields: [
      timeField(times),
      ...labelNames.map((name, index) => ({ name, type: FieldType.string, config: {}, values: labelValues[index] })),
      { name: valueName, type: FieldType.number, config: {}, values: numbers },
    ],
  };
}

export function toFrames(queries: QueryAnswer[]): DataFrame[] {
  const tables = new Set(queries.filter(({ format }) => format === 'table').map(({ refId }) => refId));
  return queries.flatMap((query) => {
    const series = seriesOf(query.data);
    if (query.format !== 'table') {
      return series.map((one) => seriesFrame(one, query));
    }
    const valueName = tables.size > 1 ? `Value #${query.refId}` : 'Value';
    return series.length ? [tableFrame(query, valueName)] : [];
  });
}
