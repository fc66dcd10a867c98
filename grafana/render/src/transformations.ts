// Owns a panel's transformations: npm's @grafana/data has most of them but registers none.
import {
  type DataFrame,
  type DataTransformerConfig,
  type DataTransformerInfo,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { firstValueFrom, map } from 'rxjs';

import { replaceVariables } from './replaceVariables';

/** One frame for each combination of values of the fields, which become labels. */
function partition(frame: DataFrame, names: string[]): DataFrame[] {
  const keys = frame.fields.filter(({ name }) => names.includes(name));
  const groups = new Map<string, number[]>();
  // A frame of the transformations before need not have a length.
  frame.fields[0]?.values.forEach((_: unknown, row: number) => {
    const key = JSON.stringify(keys.map(({ values }) => values[row]));
    groups.set(key, [...(groups.get(key) ?? []), row]);
  });
  return [...groups.values()].map((rows) => ({
    ...frame,
    length: rows.length,
    fields: frame.fields
      .filter((field) => !keys.includes(field))
      .map((field) => ({
        ...field,
        labels: Object.fromEntries(keys.map(({ name, values }) => [name, String(values[rows[0]])])),
        values: rows.map((row) => field.values[row]),
      })),
  }));
}

// Grafana's own is in no package.
const partitionByValues: DataTransformerInfo<{ fields: string[] }> = {
  id: 'partitionByValues',
  name: 'Partition by values',
  operator:
    ({ fields }) =>
    (source) =>
      source.pipe(map((frames) => frames.flatMap((frame) => partition(frame, fields)))),
};

// The list names joinByField twice, the second time under a retired name.
const transformers = new Map<string, DataTransformerInfo>(
  [...Object.values(standardTransformers), partitionByValues].map((transformer) => [transformer.id, transformer]),
);

standardTransformersRegistry.setInit(() =>
  [...transformers.values()].map((transformer) => ({
    id: transformer.id,
    name: transformer.name,
    transformation: () => Promise.resolve(transformer),
    editor: () => null,
    imageDark: '',
    imageLight: '',
  })),
);

export function transform(frames: DataFrame[], transformations: DataTransformerConfig[] = []): Promise<DataFrame[]> {
  const unknown = transformations.find(({ id }) => !standardTransformersRegistry.getIfExists(id));
  if (unknown) {
    throw new Error(`transformation "${unknown.id}" is not known`);
  }
  return firstValueFrom(transformDataFrame(transformations, frames, { interpolate: replaceVariables }));
}
