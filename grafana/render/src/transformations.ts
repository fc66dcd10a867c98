// Owns a panel's transformations: npm's @grafana/data has them all but registers none.
import {
  type DataFrame,
  type DataTransformerConfig,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { firstValueFrom } from 'rxjs';

import { replaceVariables } from './replaceVariables';

// The list names joinByField twice, the second time under a retired name.
const transformers = new Map(Object.values(standardTransformers).map((transformer) => [transformer.id, transformer]));

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
