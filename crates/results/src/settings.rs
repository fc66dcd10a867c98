//! Flags and configuration keys for results, prices and data sources.
//!
//! Flags and environment variables override the file, which overrides defaults.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use cli::{program::ConfigFileFlags, suggest::with_suggestion};
use client::Access;
use rust_decimal::Decimal;
use serde::{Deserialize, de::DeserializeOwned};
use toml::{Table, Value};

use crate::{
    cost::{
        ComputeModel, Price, PriceOrigin, Prices, budget,
        carbon::{self, Carbon},
        money::{self, Amount, Rate, Rates},
        tariff::{self, Tariff},
    },
    energy::{
        EnergySources, HostProbe, Scope,
        database::{self, Database},
        probe::Probe,
    },
};

/// Heading of the flags of runs.
pub const RUNS: &str = "Runs";
/// Heading of the flags of data sources.
pub const SOURCES: &str = "Probes and database";
/// Heading of the flags of prices and carbon.
pub const PRICES: &str = "Prices and carbon";
/// Heading of the flags of HTTP clients.
pub const CLIENT: &str = "TLS and authentication of probes and targets";

/// The flags of all commands that read results.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = RUNS)]
pub struct DataFlags {
    /// Directory of result files test_results_YYYYMMDD_HHMMSS.json
    #[arg(long, value_name = "DIR", env = "RESULTS_DIR", default_value = "./test_results")]
    pub results_dir: PathBuf,

    /// Probe, or HOST=URL of several probes [default: http://127.0.0.1:9500]
    #[arg(long, value_name = "[HOST=]URL", env = "PROBE_URL", value_delimiter = ',', help_heading = SOURCES)]
    pub probe_url: Vec<String>,

    /// Prometheus or VictoriaMetrics that scrapes the probe
    ///
    /// Used for windows that are too old for the probe, and for budgets.
    #[arg(long = "database.url", alias = "prometheus-url", value_name = "URL", env = "PROMETHEUS_URL", help_heading = SOURCES)]
    pub database_url: Option<String>,

    /// URL for writes to the database, if different (vminsert of a cluster)
    #[arg(long = "database.write-url", value_name = "URL", help_heading = SOURCES)]
    pub database_write_url: Option<String>,

    /// Tenant of the VictoriaMetrics cluster
    #[arg(long = "database.tenant", value_name = "ACCOUNT[:PROJECT]", help_heading = SOURCES)]
    pub database_tenant: Option<String>,

    /// Scope of a run's energy; container is its dynamic energy
    ///
    /// Without it, metrics use the host's, and advise, report and compare the container's where all
    /// repeats of a configuration have it.
    #[arg(long = "energy.scope", value_name = "SCOPE", value_parser = ["host", "container"])]
    pub scope: Option<String>,

    /// Price per kilowatt hour [default: 0.12, labelled as a default]
    #[arg(long = "energy.price", value_name = "PRICE", env = "ENERGY_COST_PER_KWH", value_parser = money::decimal, help_heading = PRICES)]
    pub energy_price: Option<Decimal>,

    /// Price per core hour; without it CPU time has no cost
    #[arg(long = "cpu.price", value_name = "PRICE", env = "CPU_COST_PER_HOUR", value_parser = money::decimal, help_heading = PRICES)]
    pub cpu_price: Option<Decimal>,

    /// Price per kilowatt hour, under its name in the legacy exporter
    #[arg(long = "energy-cost", value_name = "PRICE", env = "ENERGY_COST", hide = true, value_parser = money::decimal, help_heading = PRICES)]
    legacy_energy_price: Option<Decimal>,

    /// Price per core hour, under its name in the legacy exporter
    #[arg(long = "cpu-cost", value_name = "PRICE", env = "CPU_COST", hide = true, value_parser = money::decimal, help_heading = PRICES)]
    legacy_cpu_price: Option<Decimal>,

    /// Price per GPU hour
    #[arg(long = "gpu.price", value_name = "PRICE", env = "GPU_COST_PER_HOUR", value_parser = money::decimal, help_heading = PRICES)]
    pub gpu_price: Option<Decimal>,

    /// Price per machine hour, for --compute.model=node
    #[arg(long = "node.price", value_name = "PRICE", env = "NODE_COST_PER_HOUR", value_parser = money::decimal, help_heading = PRICES)]
    pub node_price: Option<Decimal>,

    /// Basis of the compute cost [default: used]
    #[arg(long = "compute.model", value_name = "MODEL", value_enum, help_heading = PRICES)]
    pub compute_model: Option<ComputeModel>,

    /// Currency of all prices [default: USD]
    #[arg(long, value_name = "ISO4217", env = "CURRENCY", value_parser = money::currency, help_heading = PRICES)]
    pub currency: Option<String>,

    /// Additional currencies of reported costs; needs `rates` in the file
    #[arg(long = "currency.report", value_name = "ISO4217", value_parser = money::currency, value_delimiter = ',', help_heading = PRICES)]
    pub report: Vec<String>,

    /// Age above which an exchange rate is stale [default: 30d]
    #[arg(long = "currency.max-age", value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = PRICES)]
    pub rate_max_age: Option<Duration>,

    /// Power usage effectiveness of the facility [default: 1]
    #[arg(long = "energy.pue", value_name = "RATIO", value_parser = pue, help_heading = PRICES)]
    pub pue: Option<Decimal>,

    /// Carbon intensity in grams of CO2 equivalents per kilowatt hour
    #[arg(long = "carbon.intensity", value_name = "GRAMS", env = "CARBON_INTENSITY", value_parser = money::decimal, help_heading = PRICES)]
    pub carbon: Option<Decimal>,

    /// Region: label of prices, and {region} in the URL of carbon intensity
    #[arg(long, value_name = "NAME", env = "REGION", help_heading = PRICES)]
    pub region: Option<String>,

    /// Access to probes and targets without settings of their own
    #[command(flatten)]
    pub client: ClientFlags,

    /// Configuration file, also for tariffs, rates, budgets, rules, webhooks and targets
    #[command(flatten)]
    pub file: ConfigFileFlags,
}

/// The fields of [`Access`] as flags.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = CLIENT)]
pub struct ClientFlags {
    /// PEM file of trusted certificate authorities, instead of the system's
    #[arg(long = "client.ca-file", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// PEM file of the client certificate
    #[arg(long = "client.cert-file", value_name = "FILE")]
    cert_file: Option<PathBuf>,

    /// PEM file of the key of the client certificate
    #[arg(long = "client.key-file", value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// User name for basic authentication
    #[arg(long = "client.username", value_name = "NAME")]
    username: Option<String>,

    /// File of the password for basic authentication
    #[arg(long = "client.password-file", value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// File of a bearer token
    #[arg(long = "client.bearer-token-file", value_name = "FILE")]
    bearer_token_file: Option<PathBuf>,
}

impl ClientFlags {
    /// The client settings of the flags.
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

fn pue(text: &str) -> Result<Decimal, String> {
    let ratio = money::decimal(text)?;
    if ratio < Decimal::ONE || ratio > Decimal::TEN { Err("expected 1 to 10".to_owned()) } else { Ok(ratio) }
}

/// The keys of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DataKeys {
    currency: Option<String>,
    report: Vec<String>,
    region: Option<String>,
    energy: EnergySettings,
    cpu: PriceSettings,
    gpu: PriceSettings,
    node: PriceSettings,
    compute: ComputeSettings,
    tariff: tariff::TariffSettings,
    carbon: carbon::CarbonSettings,
    rates: Vec<Rate>,
    database: database::DatabaseSettings,
    probe: Vec<ProbeSettings>,
    budget: Vec<budget::BudgetSettings>,
    quality: QualitySettings,
    rates_max_age: Option<String>,
}

/// Top-level keys of the configuration file that are read here; the others are flags, or keys of
/// the program.
pub const KEYS: &[&str] = &[
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
    "quality",
    "rates_max_age",
];

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EnergySettings {
    price: Option<Amount>,
    pue: Option<Amount>,
    scope: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PriceSettings {
    price: Option<Amount>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ComputeSettings {
    model: Option<ComputeModel>,
    reserved_cores: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QualitySettings {
    /// VMAF scores at which scenarios are compared.
    targets: Option<Vec<f64>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeSettings {
    #[serde(default)]
    host: String,
    url: String,
    access: Option<Access>,
}

/// Checked settings for results, prices and data sources.
pub struct DataSettings {
    /// Prices, without readings of carbon intensity that are fetched at run time.
    pub prices: Prices,
    /// Sources of energy.
    pub sources: EnergySources,
    /// API of carbon intensity.
    pub carbon: Option<carbon::Api>,
    /// Budgets.
    pub budgets: Vec<budget::BudgetSettings>,
    /// Scope of energy where both are known, for pages, whose costs are those of the host.
    pub scope: Scope,
    /// Scope of energy where both are known, for commands that compare configurations: the
    /// container's unless another is set, as that of the host includes other processes.
    pub compared_scope: Scope,
    /// VMAF scores at which scenarios are compared, ascending.
    pub vmaf_targets: Vec<f64>,
    /// Settings of the database, also for writes.
    pub database: database::DatabaseSettings,
    /// The first probe, which reports ffmpeg jobs.
    pub first_probe: Probe,
    /// True if a probe is configured; false if the default URL is used.
    pub probe_is_configured: bool,
    /// All probes: host name, URL, and client settings.
    pub probes: Vec<(String, String, Access)>,
}

/// The probes of the settings in the forms that their users need.
struct Probes {
    first: Probe,
    by_host: Vec<HostProbe>,
    access: Vec<(String, String, Access)>,
}

impl DataFlags {
    /// Combines flags, environment and the keys of the file (`table`) into checked settings.
    ///
    /// # Errors
    /// The first invalid setting, with its name.
    pub fn settings(&self, table: &Table) -> Result<DataSettings> {
        let file: DataKeys = self.read_keys(table, KEYS)?;
        let carbon_settings = match self.carbon {
            Some(grams) => {
                carbon::CarbonSettings { intensity: Some(Amount(grams)), ..carbon::CarbonSettings::default() }
            }
            None => file.carbon.clone(),
        };
        let prices = self.prices(&file, &carbon_settings)?;
        let database = database::DatabaseSettings {
            url: self.database_url.clone().filter(|url| !url.is_empty()).or(file.database.url.clone()),
            write_url: self.database_write_url.clone().or(file.database.write_url.clone()),
            tenant: self.database_tenant.clone().or(file.database.tenant.clone()),
            ..file.database.clone()
        };
        let probes = self.probes(&file)?;
        Ok(DataSettings {
            probes: probes.access,
            carbon: carbon::Api::new(&carbon_settings, &prices.region).context("carbon")?,
            scope: self.scope(&file)?.unwrap_or(Scope::Host),
            compared_scope: self.scope(&file)?.unwrap_or(Scope::Container),
            vmaf_targets: vmaf_targets(file.quality.targets.as_deref())?,
            budgets: budgets(&file.budget)?,
            sources: EnergySources { probes: probes.by_host, database: Database::new(&database).context("database")? },
            prices,
            database,
            first_probe: probes.first,
            probe_is_configured: self.probe_urls().next().is_some() || !file.probe.is_empty(),
        })
    }

    /// The given top-level keys of the file (`table`).
    ///
    /// # Errors
    /// An unknown key or an invalid value below them, with the name of the file.
    pub fn read_keys<T: DeserializeOwned>(&self, table: &Table, keys: &[&str]) -> Result<T> {
        let selected = table.iter().filter(|(key, _)| keys.contains(&&*key.replace('-', "_")));
        let selected = Table::from_iter(selected.map(|(key, value)| (key.clone(), value.clone())));
        deserialize(selected).map_err(|error| match &self.file.path {
            Some(path) => anyhow::anyhow!("{}: {error}", path.display()),
            None => anyhow::anyhow!("{error}"),
        })
    }

    fn prices(&self, file: &DataKeys, carbon_settings: &carbon::CarbonSettings) -> Result<Prices> {
        let price = |flag: Option<Decimal>, file: &PriceSettings| {
            let amount = flag.or(file.price.map(|price| price.0))?;
            Some(Price { amount, origin: origin(flag.is_some(), file.price.is_some()) })
        };
        let defaults = Prices::defaults();
        let (energy, cpu) = (self.energy_price.or(self.legacy_energy_price), self.cpu_price.or(self.legacy_cpu_price));
        let flat = energy.or(file.energy.price.map(|price| price.0));
        let tariff =
            Tariff::new(flat.unwrap_or_else(|| defaults.energy_price(jiff::Timestamp::UNIX_EPOCH)), &file.tariff)
                .map_err(anyhow::Error::msg)
                .context("tariff")?;
        let (currency, report, rates) = self.currencies(file, &defaults.currency)?;
        let region = self.region.clone().or(file.region.clone()).unwrap_or_default();
        let carbon = Carbon::new(carbon_settings).map_err(anyhow::Error::msg).context("carbon")?;
        let prices = Prices {
            currency,
            region: metrics::label::sanitize(&region),
            energy_origin: origin(energy.is_some(), file.energy.price.is_some() || tariff.is_timed()),
            tariff,
            core_hour: price(cpu, &file.cpu),
            gpu_hour: price(self.gpu_price, &file.gpu),
            node_hour: price(self.node_price, &file.node),
            model: self.compute_model.or(file.compute.model).unwrap_or_default(),
            reserved_cores: file.compute.reserved_cores.filter(|cores| cores.is_finite() && *cores >= 0.0),
            pue: match (self.pue, file.energy.pue) {
                (Some(ratio), _) => ratio,
                (None, Some(ratio)) => {
                    pue(&ratio.0.to_string()).map_err(|error| anyhow::anyhow!("energy.pue: {error}"))?
                }
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
            bail!("--compute.model=node needs the price of the machine; set --node.price, or [node] price in the file");
        }
        Ok(prices)
    }

    /// The currency of prices, additional currencies of reported costs, and the exchange rates.
    fn currencies(&self, file: &DataKeys, default: &str) -> Result<(String, Vec<String>, Rates)> {
        let currency = match (&self.currency, &file.currency) {
            (Some(flag), _) => flag.clone(),
            (None, Some(key)) => currency_code(key)?,
            (None, None) => default.to_owned(),
        };
        let report = if self.report.is_empty() {
            file.report.iter().map(|code| currency_code(code)).collect::<Result<Vec<_>>>()?
        } else {
            self.report.clone()
        };
        let rates = Rates(file.rates.clone());
        for to in &report {
            if rates.convert(Decimal::ONE, &currency, to).is_none() {
                bail!("currency.report: no exchange rate from {currency} to {to}; add [[rates]] to --config.file");
            }
        }
        if let Some(rate) = file.rates.iter().find(|rate| rate.rate.0.is_zero()) {
            bail!("rates: the rate from {} to {} is 0", rate.from, rate.to);
        }
        Ok((currency, report, rates))
    }

    /// The configured scope of energy; `None` if none is.
    fn scope(&self, file: &DataKeys) -> Result<Option<Scope>> {
        match self.scope.as_deref().or(file.energy.scope.as_deref()) {
            None => Ok(None),
            Some("host") => Ok(Some(Scope::Host)),
            Some("container") => Ok(Some(Scope::Container)),
            Some(other) => bail!("energy.scope {other:?}: expected host or container"),
        }
    }

    /// URLs of probes without empty ones, which compose files set for unset variables.
    fn probe_urls(&self) -> impl Iterator<Item = &String> {
        self.probe_url.iter().filter(|url| !url.trim().is_empty())
    }

    fn probes(&self, file: &DataKeys) -> Result<Probes> {
        let mut settings: Vec<ProbeSettings> = Vec::new();
        for argument in self.probe_urls() {
            // In HOST=URL the host contains neither colon nor slash; a URL may contain = later.
            let (host, url) = match argument.split_once('=') {
                Some((host, url)) if !host.contains(['/', ':']) => (host, url),
                _ => ("", &**argument),
            };
            settings.push(ProbeSettings { host: host.to_owned(), url: url.to_owned(), access: None });
        }
        if settings.is_empty() {
            settings.clone_from(&file.probe);
        }
        if settings.is_empty() {
            settings.push(ProbeSettings { host: String::new(), url: "http://127.0.0.1:9500".into(), access: None });
        }
        if settings.len() > 1 && settings.iter().any(|probe| probe.host.is_empty()) {
            bail!("several probes need the host names of result files: --probe-url enc-1=http://10.0.0.1:9500");
        }
        let mut hosts = BTreeSet::new();
        if let Some(duplicate) = settings.iter().find(|probe| !hosts.insert(&probe.host)) {
            bail!("two probes are configured for the host {:?}", duplicate.host);
        }
        let default_access = self.client.access();
        let access = |probe: &ProbeSettings| probe.access.as_ref().unwrap_or(&default_access).clone();
        let open = |probe: &ProbeSettings| Probe::new(&probe.url, &access(probe)).context("probe");
        let first = open(&settings[0])?;
        let host_probe = |probe: &ProbeSettings| -> Result<HostProbe> {
            Ok(HostProbe { host: probe.host.clone(), probe: open(probe)? })
        };
        let by_host = settings.iter().map(host_probe).collect::<Result<_>>()?;
        let access = settings.iter().map(|probe| (probe.host.clone(), probe.url.clone(), access(probe))).collect();
        Ok(Probes { first, by_host, access })
    }
}

fn origin(flag: bool, file: bool) -> PriceOrigin {
    match (flag, file) {
        (true, _) => PriceOrigin::User,
        (false, true) => PriceOrigin::File,
        (false, false) => PriceOrigin::Default,
    }
}

fn currency_code(text: &str) -> Result<String> {
    money::currency(text).map_err(anyhow::Error::msg)
}

/// VMAF scores at which scenarios are compared, ascending.
fn vmaf_targets(targets: Option<&[f64]>) -> Result<Vec<f64>> {
    let mut targets = targets.unwrap_or(&[80.0, 90.0, 95.0]).to_vec();
    if targets.len() > 20 || targets.iter().any(|target| !(0.0..=110.0).contains(target)) {
        bail!("quality.targets: expected at most 20 VMAF scores, from 0 to 110");
    }
    targets.sort_by(f64::total_cmp);
    targets.dedup();
    Ok(targets)
}

fn budgets(settings: &[budget::BudgetSettings]) -> Result<Vec<budget::BudgetSettings>> {
    let mut names = BTreeSet::new();
    let mut budgets = settings.to_vec();
    for budget in &mut budgets {
        if !names.insert(metrics::label::sanitize(&budget.name)) {
            bail!("budget {:?}: duplicate name", budget.name);
        }
        if budget.hosts.is_empty() {
            bail!("budget {:?}: hosts is empty; list host names, or [\"all\"]", budget.name);
        }
        if let Some(currency) = &mut budget.currency {
            *currency = currency_code(currency)?;
        }
    }
    Ok(budgets)
}

fn deserialize<T: DeserializeOwned>(table: Table) -> Result<T, String> {
    // TOML keys use dashes or underscores; the fields of structs use underscores.
    underscored(&Value::Table(table)).try_into().map_err(|error: toml::de::Error| with_suggestion(&error.to_string()))
}

fn underscored(value: &Value) -> Value {
    match value {
        Value::Table(table) => {
            Value::Table(table.iter().map(|(key, value)| (key.replace('-', "_"), underscored(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(underscored).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        data: DataFlags,
    }

    fn settings(args: &[&str], file: &str) -> Result<DataSettings> {
        let args = ["x"].into_iter().chain(args.iter().copied());
        CommandLine::try_parse_from(args).unwrap().data.settings(&toml::from_str(file).unwrap())
    }

    #[test]
    fn flags_override_the_file_and_defaults_are_marked() {
        let file = "currency = \"SEK\"\n[energy]\nprice = 1.5\n[cpu]\nprice = \"0.2\"";
        let prices = settings(&["--energy.price=2"], file).unwrap().prices;
        let cpu = |prices: &Prices| prices.core_hour.map(|price| price.origin);
        assert_eq!((prices.energy_origin, cpu(&prices)), (PriceOrigin::User, Some(PriceOrigin::File)));
        assert_eq!((prices.energy_price(jiff::Timestamp::now()), &*prices.currency), (Decimal::TWO, "SEK"));
        let prices = settings(&[], "").unwrap().prices;
        assert_eq!((prices.energy_origin, cpu(&prices)), (PriceOrigin::Default, None));
        let timed = settings(&[], "[tariff]\ntime_zone = \"UTC\"\n[[tariff.period]]\nprice = 1").unwrap().prices;
        assert_eq!(timed.energy_origin, PriceOrigin::File);
    }

    #[test]
    fn prices_have_their_legacy_flags_too() {
        let prices = settings(&["--energy-cost=0", "--cpu-cost=0.2"], "[cpu]\nprice = 9").unwrap().prices;
        assert_eq!(
            (prices.energy_price(jiff::Timestamp::now()), prices.energy_origin),
            (Decimal::ZERO, PriceOrigin::User)
        );
        assert_eq!(prices.core_hour, Some(Price { amount: Decimal::new(2, 1), origin: PriceOrigin::User }));
        let prices = settings(&["--energy-cost=0", "--energy.price=2"], "").unwrap().prices;
        assert_eq!(prices.energy_price(jiff::Timestamp::now()), Decimal::TWO);
    }

    #[test]
    fn invalid_setting_is_an_error_with_its_name() {
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
            (&[], "[quality]\ntargets = [200]", "VMAF"),
            (&[], "[[rates]]\nfrom = \"USD\"\nto = \"EUR\"\nrate = 0\ndate = \"2026-11-20\"", "rates"),
            (&[], "[carbon]\nintensity = 1\nurl = \"http://x\"", "one of"),
        ] {
            let error = match settings(args, file) {
                Ok(_) => panic!("{args:?} {file} was accepted"),
                Err(error) => format!("{error:#}"),
            };
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn probes_are_configured_by_host() {
        let settings =
            settings(&["--probe-url=enc-1=http://10.0.0.1:9500,enc-2=http://10.0.0.2:9500?x=1"], "").unwrap();
        let hosts: Vec<_> = settings.sources.probes.iter().map(|probe| &*probe.host).collect();
        assert_eq!(hosts, ["enc-1", "enc-2"]);
    }
}
