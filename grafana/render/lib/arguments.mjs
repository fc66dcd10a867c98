// Owns the program's flags: their names, defaults and checks.
import { parseArgs } from 'node:util';

const USAGE = `Usage: node draw.mjs --dashboards DIR --prometheus URL --out DIR
  [--from UNIX --to UNIX]   time range in Unix seconds (default: the dashboard's own)
  [--var name=value ...]    value of a dashboard variable; give a name twice for two values
  [--only UID]              draw this dashboard only
  [--theme dark|light]      (default: dark)
  [--scrape-interval SEC]   smallest query step (default: 5)
  [--chromium PATH]         browser (default: $CHROMIUM or /usr/bin/chromium)`;

const FLAGS = {
  dashboards: { type: 'string' },
  prometheus: { type: 'string' },
  out: { type: 'string' },
  from: { type: 'string' },
  to: { type: 'string' },
  var: { type: 'string', multiple: true, default: [] },
  only: { type: 'string' },
  theme: { type: 'string', default: 'dark' },
  'scrape-interval': { type: 'string', default: '5' },
  chromium: { type: 'string', default: process.env.CHROMIUM || '/usr/bin/chromium' },
  help: { type: 'boolean', default: false },
};

function stop(message) {
  console.error(`${message}\n\n${USAGE}`);
  process.exit(2);
}

function parse(argv) {
  try {
    return parseArgs({ args: argv, options: FLAGS }).values;
  } catch (error) {
    return stop(error.message);
  }
}

function toNumber(name, text) {
  const number = Number(text);
  if (text.trim() === '' || !Number.isFinite(number) || number <= 0) {
    stop(`--${name} needs a number above zero, not "${text}"`);
  }
  return number;
}

function toVariables(pairs) {
  const variables = new Map();
  for (const pair of pairs) {
    const [, name, value] = /^(\w+)=(.*)$/s.exec(pair) ?? stop(`--var needs name=value, not "${pair}"`);
    variables.set(name, [...(variables.get(name) ?? []), value]);
  }
  return variables;
}

export function readArguments(argv) {
  const values = parse(argv);
  if (values.help) {
    console.log(USAGE);
    process.exit(0);
  }
  for (const name of ['dashboards', 'prometheus', 'out']) {
    if (!values[name]) {
      stop(`--${name} is missing`);
    }
  }
  if (!['dark', 'light'].includes(values.theme)) {
    stop(`--theme must be dark or light, not "${values.theme}"`);
  }
  if ((values.from === undefined) !== (values.to === undefined)) {
    stop('--from and --to must be given together');
  }
  const from = values.from && toNumber('from', values.from);
  const to = values.to && toNumber('to', values.to);
  if (from >= to) {
    stop('--from must be before --to');
  }
  return {
    dashboards: values.dashboards,
    prometheus: values.prometheus,
    out: values.out,
    only: values.only,
    theme: values.theme,
    chromium: values.chromium,
    from,
    to,
    variables: toVariables(values.var),
    scrapeInterval: toNumber('scrape-interval', values['scrape-interval']),
  };
}
