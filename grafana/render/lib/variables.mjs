// Owns dashboard variables: their values, and their substitution in queries and texts.

// $name, ${name}, ${name:format}, [[name]] and [[name:format]].
const REFERENCE = /\$(\w+)|\$\{(\w+)(?::([^}]+))?\}|\[\[(\w+)(?::(\w+))?\]\]/g;
const LABEL_VALUES = /^label_values\((?:(.*),)?\s*([\w.:-]+)\s*\)$/s;

function replaceReferences(text, replace) {
  return text.replace(REFERENCE, (reference, plain, braced, bracedFormat, legacy, legacyFormat) => {
    const value = replace(plain ?? braced ?? legacy, bracedFormat ?? legacyFormat);
    return value ?? reference;
  });
}

function escapeRegex(text) {
  return text.replace(/[\\^$*+?.()|[\]{}/]/g, '\\$&');
}

function group(values) {
  return values.length === 1 ? values[0] : `(${values.join('|')})`;
}

/** Without a format, several values become a regular expression, as Grafana does for Prometheus. */
function formatForQuery({ values, isAll }, format) {
  switch (format) {
    case 'regex':
      return group(isAll ? values : values.map(escapeRegex));
    case 'pipe':
      return values.join('|');
    case 'csv':
      return values.join(',');
    default:
      return group(values);
  }
}

export function interpolateQuery(text, variables, builtIns = {}) {
  return replaceReferences(text, (name, format) => {
    const variable = variables.get(name);
    return variable ? formatForQuery(variable, format) : builtIns[name];
  });
}

function interpolateText(text, variables) {
  return replaceReferences(text, (name) => {
    const variable = variables.get(name);
    return variable && (variable.isAll ? 'All' : variable.values.join(' + '));
  });
}

/** Substitutes variables in every string of a panel except its queries, which have their own rules. */
export function interpolateModel(model, variables) {
  if (typeof model === 'string') {
    return interpolateText(model, variables);
  }
  if (Array.isArray(model)) {
    return model.map((item) => interpolateModel(item, variables));
  }
  if (model && typeof model === 'object') {
    const entries = Object.entries(model).filter(([key]) => key !== 'targets');
    return Object.fromEntries(entries.map(([key, value]) => [key, interpolateModel(value, variables)]));
  }
  return model;
}

function savedValues(definition) {
  const value = definition.current?.value;
  const values = (Array.isArray(value) ? value : [value]).filter(
    (item) => item !== undefined && item !== null && item !== '',
  );
  return values.map(String);
}

async function firstLabelValue(definition, variables, prometheus, range) {
  const query = interpolateQuery(definition.query?.query ?? definition.query ?? '', variables);
  const [, selector, label] = LABEL_VALUES.exec(query.trim()) ?? [];
  if (!label) {
    throw new Error(`no value; give --var ${definition.name}=…`);
  }
  const values = await prometheus.labelValues(label, selector, range);
  return values.slice(0, 1);
}

async function resolveVariable(definition, override, variables, prometheus, range) {
  if (override) {
    return { values: override, isAll: false };
  }
  if (definition.includeAll || definition.allValue) {
    return { values: [definition.allValue || '.*'], isAll: true };
  }
  const saved = savedValues(definition);
  if (saved.length) {
    return { values: saved, isAll: false };
  }
  switch (definition.type) {
    case 'query':
      return { values: await firstLabelValue(definition, variables, prometheus, range), isAll: false };
    case 'custom':
    case 'interval':
      return {
        values: [
          String(definition.query ?? '')
            .split(',')[0]
            .trim(),
        ],
        isAll: false,
      };
    default:
      return { values: [String(definition.query ?? '')], isAll: false };
  }
}

/** In the dashboard's order, because the query of a variable may contain earlier variables. */
export async function resolveVariables(definitions, overrides, prometheus, range) {
  const variables = new Map([...overrides].map(([name, values]) => [name, { values, isAll: false }]));
  for (const definition of definitions) {
    try {
      variables.set(
        definition.name,
        await resolveVariable(definition, overrides.get(definition.name), variables, prometheus, range),
      );
    } catch (error) {
      throw new Error(`variable ${definition.name}: ${error.message}`);
    }
  }
  return variables;
}
