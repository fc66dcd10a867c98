// Owns the variables that stand for the data itself, as in "${__field.labels.instance}".
// draw.mjs has already substituted the dashboard variables.
import {
  type DataContextScopedVar,
  formatLabels,
  getFieldDisplayName,
  getFrameDisplayName,
  type InterpolateFunction,
} from '@grafana/data';

const REFERENCE = /\$\{(__\w+)(?:\.([^}:]+))?(?::\w+)?\}|\$(__\w+)/g;
const LABEL_PATH = /^labels(?:\.(.+)|\[["']?(.+?)["']?\])?$/;

function describeField({ field, frame, data }: DataContextScopedVar['value'], path: string): string | undefined {
  if (!field) {
    return undefined;
  }
  const label = LABEL_PATH.exec(path);
  if (label) {
    const name = label[1] ?? label[2];
    return name ? (field.labels?.[name] ?? '') : formatLabels(field.labels ?? {}, '', true);
  }
  return path === 'name' ? field.name : getFieldDisplayName(field, frame, data);
}

export const replaceVariables: InterpolateFunction = (text, scopedVars) =>
  text.replace(
    REFERENCE,
    (reference, braced: string | undefined, path: string | undefined, plain: string | undefined) => {
      const name = braced ?? plain ?? '';
      const context: DataContextScopedVar['value'] | undefined = scopedVars?.__dataContext?.value;
      if (name === '__field' && context) {
        return describeField(context, path ?? 'displayName') ?? reference;
      }
      if (name === '__series' && context?.frame) {
        return getFrameDisplayName(context.frame, context.frameIndex);
      }
      const value: unknown = scopedVars?.[name]?.value;
      return typeof value === 'string' ? value : reference;
    },
  );
