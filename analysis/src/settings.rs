//! What a user said, from three places: flags and environment over the file over the defaults. What comes out is what the rest works with, checked.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use exporter::{
    layers::Own,
    nearest::{explain, nearest},
    program::FileFlags,
};
use rust_decimal::Decimal;
use serde::Deserialize;
use toml::{Table, Value};

use crate::{
    alerts,
    client::Access,
    cost::{
        ComputeModel, Origin, Price, Prices, budget,
        carbon::{self, Carbon},
        money::{self, Amount, Rate, Rates},
        tariff::{self, Tariff},
    },
    energy::{
        OnHost, Scope, Sources,
        database::{self, Database},
        probe::Probe,
    },
    health::{
        round::Plan,
        scrape,
        target::{self, Ours, Target},
    },
};

/// Flags that `serve`, `advise` and `backfill` share.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Runs, prices, and whom to ask")]
pub struct Shared {
    /// Directory of test_results_YYYYMMDD_HHMMSS.json files
    #[arg(long, value_name = "DIR", env = "RESULTS_DIR", default_value = "./test_results")]
    pub results_dir: PathBuf,

    /// The probe that saw the runs; HOST=URL for each where there are several [default: http://127.0.0.1:9500]
    #[arg(long, value_name = "[HOST=]URL", env = "PROBE_URL", value_delimiter = ',')]
    pub probe_url: Vec<String>,

    /// A Prometheus or VictoriaMetrics that scrapes the probe: for windows that the probe has forgotten, and for budgets
    #[arg(long = "database.url", value_name = "URL", env = "PROMETHEUS_URL")]
    pub database_url: Option<String>,

    /// Where the database takes samples, if that is another (vminsert of a cluster)
    #[arg(long = "database.write-url", value_name = "URL")]
    pub database_write_url: Option<String>,

    /// Tenant of a VictoriaMetrics cluster
    #[arg(long = "database.tenant", value_name = "ACCOUNT[:PROJECT]")]
    pub database_tenant: Option<String>,

    /// Whose energy a run's is where both are known: the host's, or the dynamic energy of its container [default: host]
    #[arg(long = "energy.scope", value_name = "SCOPE", value_parser = ["host", "container"])]
    pub scope: Option<String>,

    /// Money for a kilowatt hour [default: 0.12, and said to be a default]
    #[arg(long = "energy.price", value_name = "PRICE", env = "ENERGY_COST_PER_KWH", value_parser = money::decimal)]
    pub energy_price: Option<Decimal>,

    /// Money for a core for an hour [default: 0.50, and said to be a default]
    #[arg(long = "cpu.price", value_name = "PRICE", env = "CPU_COST_PER_HOUR", value_parser = money::decimal)]
    pub cpu_price: Option<Decimal>,

    /// Money for a GPU for an hour
    #[arg(long = "gpu.price", value_name = "PRICE", env = "GPU_COST_PER_HOUR", value_parser = money::decimal)]
    pub gpu_price: Option<Decimal>,

    /// Money for the machine for an hour, for --compute.model=node
    #[arg(long = "node.price", value_name = "PRICE", env = "NODE_COST_PER_HOUR", value_parser = money::decimal)]
    pub node_price: Option<Decimal>,

    /// How CPU time is paid for [default: used]
    #[arg(long = "compute.model", value_name = "MODEL", value_enum)]
    pub compute_model: Option<ComputeModel>,

    /// Currency of all prices [default: USD]
    #[arg(long, value_name = "ISO4217", env = "CURRENCY", value_parser = money::currency)]
    pub currency: Option<String>,

    /// Currencies to show costs in besides; their dated rates are in the file
    #[arg(long = "currency.report", value_name = "ISO4217", value_parser = money::currency, value_delimiter = ',')]
    pub report: Vec<String>,

    /// A rate that is older is stale [default: 30d]
    #[arg(long = "currency.max-age", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub rate_max_age: Option<Duration>,

    /// Energy of the building for one of the machine [default: 1]
    #[arg(long = "energy.pue", value_name = "RATIO", value_parser = pue)]
    pub pue: Option<Decimal>,

    /// Grams of CO2-equivalents for a kilowatt hour
    #[arg(long = "carbon.intensity", value_name = "GRAMS", env = "CARBON_INTENSITY", value_parser = money::decimal)]
    pub carbon: Option<Decimal>,

    /// A label of prices, and {region} in the URL of carbon intensity
    #[arg(long, value_name = "NAME", env = "REGION")]
    pub region: Option<String>,

    /// How probes, and targets of ours, are reached, where nothing else is said of one
    #[command(flatten)]
    pub client: ClientFlags,

    /// Where all this may stand, and what flags cannot say: tariffs, rates, budgets, rules, webhooks, targets
    #[command(flatten)]
    pub file: FileFlags,
}

/// The same as [`Access`], on the command line.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Probes and targets behind TLS and passwords")]
pub struct ClientFlags {
    /// PEM file of the authorities to trust instead of the system's
    #[arg(long = "client.ca-file", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// PEM file of the certificate that we show
    #[arg(long = "client.cert-file", value_name = "FILE")]
    cert_file: Option<PathBuf>,

    /// PEM file of its key
    #[arg(long = "client.key-file", value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// For basic auth
    #[arg(long = "client.username", value_name = "NAME")]
    username: Option<String>,

    /// File of its password
    #[arg(long = "client.password-file", value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// File of a bearer token
    #[arg(long = "client.bearer-token-file", value_name = "FILE")]
    bearer_token_file: Option<PathBuf>,
}

impl ClientFlags {
    /// What they say.
    #[must_use]
    pub fn access(&self) -> Access {
        Access {
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            bearer_token_file: self.bearer_token_file.clone(),
            timeout: None,
        }
    }
}

/// What is looked at, and how; of `serve` and `check`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Health")]
pub struct Health {
    /// Targets, instead of the usual ones of this host: NAME=URL, or a URL alone
    #[arg(
        long = "health.targets",
        visible_alias = "targets",
        value_name = "[NAME=]URL",
        env = "HEALTH_TARGETS",
        value_delimiter = ','
    )]
    pub targets: Vec<String>,

    /// A Prometheus configuration, whose static targets are looked at instead
    #[arg(long = "health.scrape-config", visible_alias = "scrape-config", value_name = "FILE")]
    pub scrape_config: Option<PathBuf>,

    /// How often
    #[arg(long = "health.interval", visible_alias = "interval", value_name = "DURATION", default_value = "30s", value_parser = often)]
    pub interval: Duration,

    /// Longest that an answer may take, up to 1m
    #[arg(long = "health.timeout", visible_alias = "timeout", value_name = "DURATION", default_value = "5s", value_parser = timeout)]
    pub timeout: Duration,

    /// Data that is older is stale, where a target has no max_age of its own
    #[arg(long = "health.max-age", value_name = "DURATION", default_value = "60s", value_parser = often)]
    pub max_age: Duration,

    /// A clock that is further off is off; from 1s on, for that is as fine as clocks are told
    #[arg(long = "health.max-skew", value_name = "DURATION", default_value = "5s", value_parser = skew)]
    pub most_skew: Duration,

    /// Targets to leave out, by name
    #[arg(long = "health.skip", value_name = "NAME", value_delimiter = ',')]
    pub skip: Vec<String>,
}

/// As `30s`, or as the replaced checker has it: `30`.
///
/// # Errors
/// What is wrong with it.
pub fn often(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().map(|seconds| Duration::from_secs(seconds.into()));
    let time = match seconds {
        Ok(time) => time,
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s"))?,
    };
    let range = Duration::from_millis(100)..=Duration::from_secs(86_400);
    if range.contains(&time) { Ok(time) } else { Err("100ms to 1d".into()) }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let time = often(text)?;
    if time <= target::LONGEST { Ok(time) } else { Err("100ms to 1m".into()) }
}

fn skew(text: &str) -> Result<Duration, String> {
    let time = often(text)?;
    if time >= Duration::from_secs(1) { Ok(time) } else { Err("1s to 1d: a Date has whole seconds".into()) }
}

fn pue(text: &str) -> Result<Decimal, String> {
    let ratio = money::decimal(text)?;
    if ratio < Decimal::ONE || ratio > Decimal::TEN { Err("1 to 10".to_owned()) } else { Ok(ratio) }
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    currency: Option<String>,
    report: Vec<String>,
    region: Option<String>,
    energy: Energy,
    cpu: Priced,
    gpu: Priced,
    node: Priced,
    compute: Compute,
    tariff: tariff::Settings,
    carbon: carbon::Settings,
    rates: Vec<Rate>,
    database: database::Settings,
    probe: Vec<OneProbe>,
    budget: Vec<budget::Settings>,
    rule: Vec<alerts::Rule>,
    webhook: Vec<alerts::post::Webhook>,
    quality: Quality,
    rates_max_age: Option<String>,
    health: HealthFile,
}

/// What of a file is read here; the rest of its keys are flags.
pub const OWN: Own = Own {
    keys: &[
        "currency",
        "report",
        "region",
        "energy",
        "cpu",
        "gpu",
        "node",
        "compute",
        "tariff",
        "carbon",
        "rates",
        "database",
        "probe",
        "budget",
        "rule",
        "webhook",
        "quality",
        "rates_max_age",
        "health.target",
    ],
    // Whether they come from the file is told on the page of prices; and what a database is reached by stands in one place.
    flags: &[
        "currency",
        "region",
        "energy.price",
        "energy.pue",
        "energy.scope",
        "cpu.price",
        "gpu.price",
        "node.price",
        "compute.model",
        "database.url",
        "database.write-url",
        "database.tenant",
        "carbon.intensity",
    ],
};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HealthFile {
    target: Vec<target::Written>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Energy {
    price: Option<Amount>,
    pue: Option<Amount>,
    scope: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Priced {
    price: Option<Amount>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Compute {
    model: Option<ComputeModel>,
    reserved_cores: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Quality {
    /// VMAF at which scenarios are compared.
    targets: Option<Vec<f64>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneProbe {
    #[serde(default)]
    host: String,
    url: String,
    access: Option<Access>,
}

/// Probes by their hosts.
type Named = Vec<(String, String, Access)>;

/// What everything works with.
pub struct Setup {
    /// Prices, without what is learnt while running.
    pub prices: Prices,
    /// Whom to ask for joules.
    pub sources: Sources,
    /// The page of carbon intensity.
    pub carbon: Option<carbon::Source>,
    /// Budgets.
    pub budgets: Vec<budget::Settings>,
    /// What to tell of.
    pub rules: Vec<alerts::Rule>,
    /// Whom to tell.
    pub webhooks: Vec<alerts::post::Webhook>,
    /// Whose energy a run's is.
    pub scope: Scope,
    /// VMAF at which scenarios are compared.
    pub targets: Vec<f64>,
    /// The database, as it is written to.
    pub database: database::Settings,
    /// The first probe, for streams.
    pub nearest: Probe,
    /// True when somebody named a probe; else it is looked for where it usually is.
    pub probe_is_named: bool,
    /// Probes: their hosts' names, URLs, and how they are reached.
    pub probes: Vec<(String, String, Access)>,
    /// Targets of the file.
    pub targets_of_file: Vec<target::Written>,
}

impl Shared {
    /// Puts all together; `table` is what of the file is read here.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn setup(&self, table: &Table) -> Result<Setup> {
        let file = read(table).map_err(|why| match &self.file.path {
            Some(path) => anyhow::anyhow!("{}: {why}", path.display()),
            None => anyhow::anyhow!("{why}"),
        })?;
        let origin = |flag: bool, file: bool| match (flag, file) {
            (true, _) => Origin::User,
            (false, true) => Origin::File,
            (false, false) => Origin::Default,
        };
        let price = |flag: Option<Decimal>, file: &Priced| {
            let amount = flag.or(file.price.map(|price| price.0))?;
            Some(Price { amount, origin: origin(flag.is_some(), file.price.is_some()) })
        };
        let defaults = Prices::defaults();
        let plain = self.energy_price.or(file.energy.price.map(|price| price.0));
        let tariff =
            Tariff::new(plain.unwrap_or_else(|| defaults.energy_now(jiff::Timestamp::UNIX_EPOCH)), &file.tariff)
                .map_err(anyhow::Error::msg)
                .context("tariff")?;
        let carbon_settings = match self.carbon {
            Some(grams) => carbon::Settings { intensity: Some(Amount(grams)), ..carbon::Settings::default() },
            None => file.carbon.clone(),
        };
        let code = |text: &String| money::currency(text).map_err(anyhow::Error::msg);
        let currency = match (&self.currency, &file.currency) {
            (Some(given), _) => given.clone(),
            (None, Some(given)) => code(given)?,
            (None, None) => defaults.currency.clone(),
        };
        let report = if self.report.is_empty() {
            file.report.iter().map(code).collect::<Result<Vec<_>>>()?
        } else {
            self.report.clone()
        };
        let rates = Rates(file.rates.clone());
        for to in &report {
            if rates.convert(Decimal::ONE, &currency, to).is_none() {
                bail!(
                    "costs are to be shown in {to}, and there is no rate from {currency}: add [[rates]] to --config.file"
                );
            }
        }
        let region = self.region.clone().or(file.region.clone()).unwrap_or_default();
        let carbon = Carbon::new(&carbon_settings).map_err(anyhow::Error::msg).context("carbon")?;
        let prices = Prices {
            currency,
            region: exporter::label::clean(&region),
            energy_origin: origin(self.energy_price.is_some(), file.energy.price.is_some() || tariff.is_timed()),
            tariff,
            core_hour: price(self.cpu_price, &file.cpu).unwrap_or(defaults.core_hour),
            gpu_hour: price(self.gpu_price, &file.gpu),
            node_hour: price(self.node_price, &file.node),
            model: self.compute_model.or(file.compute.model).unwrap_or_default(),
            reserved_cores: file.compute.reserved_cores.filter(|cores| cores.is_finite() && *cores >= 0.0),
            pue: match (self.pue, file.energy.pue) {
                (Some(ratio), _) => ratio,
                (None, Some(ratio)) => pue(&ratio.0.to_string()).map_err(|why| anyhow::anyhow!("energy.pue: {why}"))?,
                (None, None) => defaults.pue,
            },
            rates,
            report,
            rate_max_age: match (self.rate_max_age, &file.rates_max_age) {
                (Some(age), _) => age,
                (None, Some(text)) => {
                    humantime::parse_duration(text).with_context(|| format!("rates_max_age {text:?}"))?
                }
                (None, None) => defaults.rate_max_age,
            },
            carbon: carbon.map(Arc::new),
        };
        if prices.model == ComputeModel::Node && prices.node_hour.is_none() {
            bail!("--compute.model=node needs the machine's price: --node.price, or [node] price in the file");
        }
        let database = database::Settings {
            url: self.database_url.clone().filter(|url| !url.is_empty()).or(file.database.url.clone()),
            write_url: self.database_write_url.clone().or(file.database.write_url.clone()),
            tenant: self.database_tenant.clone().or(file.database.tenant.clone()),
            ..file.database.clone()
        };
        let (probes, nearest, named) = self.probes(&file)?;
        let scope = match self.scope.as_deref().or(file.energy.scope.as_deref()) {
            None | Some("host") => Scope::Host,
            Some("container") => Scope::Container,
            Some(other) => bail!("energy.scope {other:?}: host or container"),
        };
        let mut targets = file.quality.targets.clone().unwrap_or_else(|| vec![80.0, 90.0, 95.0]);
        if targets.len() > 20 || targets.iter().any(|target| !(0.0..=110.0).contains(target)) {
            bail!("quality.targets: up to 20 scores of VMAF");
        }
        targets.sort_by(f64::total_cmp);
        targets.dedup();
        let mut known = BTreeSet::new();
        for rule in &file.rule {
            rule.check().map_err(anyhow::Error::msg)?;
            if !known.insert(rule.identity()) {
                bail!("rule {:?}: there are two of that name, severity and metric", rule.name);
            }
        }
        let mut names = BTreeSet::new();
        let mut budgets = file.budget.clone();
        for budget in &mut budgets {
            if !names.insert(exporter::label::clean(&budget.name)) {
                bail!("budget {:?}: there are two of that name", budget.name);
            }
            if budget.hosts.is_empty() {
                bail!("budget {:?}: hosts is empty; name them, or [\"all\"]", budget.name);
            }
            if let Some(currency) = &mut budget.currency {
                *currency = code(currency)?;
            }
        }
        if let Some(rate) = file.rates.iter().find(|rate| rate.rate.0.is_zero()) {
            bail!("rates: 0 {} for one {}", rate.to, rate.from);
        }
        Ok(Setup {
            probes: named,
            targets_of_file: file.health.target,
            carbon: carbon::Source::new(&carbon_settings, &prices.region).context("carbon")?,
            prices,
            sources: Sources { probes, database: Database::new(&database).context("database")? },
            budgets,
            rules: file.rule,
            webhooks: file.webhook,
            scope,
            targets,
            database,
            nearest,
            probe_is_named: self.probe_urls().next().is_some() || !file.probe.is_empty(),
        })
    }

    /// An empty one is none: compose files have it so.
    fn probe_urls(&self) -> impl Iterator<Item = &String> {
        self.probe_url.iter().filter(|given| !given.trim().is_empty())
    }

    fn probes(&self, file: &File) -> Result<(Vec<OnHost>, Probe, Named)> {
        let mut wanted: Vec<OneProbe> = Vec::new();
        for given in self.probe_urls() {
            // A host name holds neither colon nor slash before its =.
            let (host, url) = match given.split_once('=') {
                Some((host, url)) if !host.contains(['/', ':']) => (host, url),
                _ => ("", &**given),
            };
            wanted.push(OneProbe { host: host.to_owned(), url: url.to_owned(), access: None });
        }
        if wanted.is_empty() {
            wanted.clone_from(&file.probe);
        }
        if wanted.is_empty() {
            wanted.push(OneProbe { host: String::new(), url: "http://127.0.0.1:9500".into(), access: None });
        }
        if wanted.len() > 1 && wanted.iter().any(|probe| probe.host.is_empty()) {
            bail!("several probes need their hosts' names, as runs call them: --probe-url enc-1=http://10.0.0.1:9500");
        }
        let mut hosts = BTreeSet::new();
        if let Some(twice) = wanted.iter().find(|probe| !hosts.insert(&probe.host)) {
            bail!("two probes are named for the host {:?}", twice.host);
        }
        let usual = self.client.access();
        let access = |probe: &OneProbe| probe.access.as_ref().unwrap_or(&usual).clone();
        let nearest = Probe::new(&wanted[0].url, &access(&wanted[0])).context("the probe")?;
        let open = |probe: &OneProbe| -> Result<OnHost> {
            let client = Probe::new(&probe.url, &access(probe)).context("a probe")?;
            Ok(OnHost { host: probe.host.clone(), probe: client })
        };
        let named = wanted.iter().map(|probe| (probe.host.clone(), probe.url.clone(), access(probe))).collect();
        Ok((wanted.iter().map(open).collect::<Result<_>>()?, nearest, named))
    }
}

fn read(table: &Table) -> Result<File, String> {
    // Both kinds of names are usual in TOML; ours have no dashes.
    let plain = underscored(&Value::Table(table.clone()));
    plain.try_into().map_err(|error: toml::de::Error| explain(&error.to_string()))
}

fn underscored(value: &Value) -> Value {
    match value {
        Value::Table(table) => {
            Value::Table(table.iter().map(|(key, value)| (key.replace('-', "_"), underscored(value))).collect())
        }
        Value::Array(all) => Value::Array(all.iter().map(underscored).collect()),
        other => other.clone(),
    }
}

/// What the service looks at: `[[health.target]]`, or what the flags name, or the usual targets of a host. `ours` tells where those of Wattcast are.
///
/// # Errors
/// What makes no sense.
pub fn plan(health: &Health, setup: &Setup, client: &ClientFlags, ours: &Ours) -> Result<Plan> {
    let (access, max_age) = (client.access(), health.max_age);
    let named: Vec<&String> = health.targets.iter().filter(|given| !given.trim().is_empty()).collect();
    let mut left_out = Vec::new();
    let all = |targets: &mut dyn Iterator<Item = Result<Target, String>>| -> Result<Vec<Target>> {
        targets.collect::<Result<_, _>>().map_err(anyhow::Error::msg)
    };
    let mut targets = if !named.is_empty() {
        all(&mut named.iter().map(|given| target::given(given, &access, max_age)))?
    } else if let Some(file) = &health.scrape_config {
        let (targets, others) = scrape::scraped(file, max_age).map_err(anyhow::Error::msg)?;
        left_out = others;
        targets
    } else if setup.targets_of_file.is_empty() {
        target::defaults(&Ours { max_age, ..ours.clone() })
    } else {
        all(&mut setup.targets_of_file.iter().map(|written| written.read(max_age)))?
    };
    for name in &health.skip {
        let before = targets.len();
        targets.retain(|target| target.name != *name);
        if targets.len() == before {
            let known = targets.iter().map(|target| &*target.name);
            let hint = nearest(name, known).map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default();
            bail!("--health.skip: no target is called {name}{hint}");
        }
    }
    target::distinct(&targets).map_err(anyhow::Error::msg)?;
    let Health { interval, timeout, most_skew, .. } = *health;
    Ok(Plan { targets, interval, timeout, most_skew, left_out })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        shared: Shared,
    }

    fn setup(args: &[&str], file: &str) -> Result<Setup> {
        let args = ["x"].into_iter().chain(args.iter().copied());
        Line::try_parse_from(args).unwrap().shared.setup(&toml::from_str(file).unwrap())
    }

    #[test]
    fn flags_win_over_the_file_and_defaults_are_called_so() {
        let file = "currency = \"SEK\"\n[energy]\nprice = 1.5\n[cpu]\nprice = \"0.2\"";
        let prices = setup(&["--energy.price=2"], file).unwrap().prices;
        assert_eq!((prices.energy_origin, prices.core_hour.origin), (Origin::User, Origin::File));
        assert_eq!((prices.energy_now(jiff::Timestamp::now()), &*prices.currency), (Decimal::TWO, "SEK"));
        let prices = setup(&[], "").unwrap().prices;
        assert_eq!((prices.energy_origin, prices.core_hour.origin), (Origin::Default, Origin::Default));
        let timed = setup(&[], "[tariff]\ntime_zone = \"UTC\"\n[[tariff.period]]\nprice = 1").unwrap().prices;
        assert_eq!(timed.energy_origin, Origin::File);
    }

    #[test]
    fn what_is_wrong_is_named_before_anything_runs() {
        for (args, file, word) in [
            (&["--currency.report=EUR"][..], "", "[[rates]]"),
            (&["--compute.model=node"], "", "--node.price"),
            (&["--probe-url=http://a,http://b"], "", "names"),
            (&["--probe-url=a=http://a,a=http://b"], "", "two probes"),
            (&["--database.url=db:8428"], "", "http://"),
            (&["--database.url=http://db:8428", "--database.tenant=x"], "", "tenant"),
            (&[], "[energy]\nprise = 1", "prise"),
            (&[], "[energy]\npue = 0.5", "1 to 10"),
            (&[], "[[budget]]\nname = \"a\"\namount = 1", "hosts"),
            (&[], "[[rule]]\nname = \"a\"\nmetric = \"vmaf\"", "above"),
            (&[], "[quality]\ntargets = [200]", "VMAF"),
            (&[], "[[rates]]\nfrom = \"USD\"\nto = \"EUR\"\nrate = 0\ndate = \"2026-11-20\"", "rates"),
            (&[], "[carbon]\nintensity = 1\nurl = \"http://x\"", "one of"),
        ] {
            let error = match setup(args, file) {
                Ok(_) => panic!("{args:?} {file} was taken"),
                Err(error) => format!("{error:#}"),
            };
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn probes_are_known_by_their_hosts() {
        let setup = setup(&["--probe-url=enc-1=http://10.0.0.1:9500,enc-2=http://10.0.0.2:9500?x=1"], "").unwrap();
        let hosts: Vec<_> = setup.sources.probes.iter().map(|probe| &*probe.host).collect();
        assert_eq!(hosts, ["enc-1", "enc-2"]);
    }
}
