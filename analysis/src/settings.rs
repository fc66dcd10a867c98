//! What a user said, from three places: flags and environment over the file over the defaults. What comes out is what the rest works with, checked.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rust_decimal::Decimal;
use serde::Deserialize;

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
    file::read_whole,
};

/// Largest configuration file.
const MAX_FILE: u64 = 1 << 20;

/// Flags that `serve`, `advise` and `backfill` share.
#[derive(Clone, Debug, Args)]
pub struct Shared {
    /// TOML file for what flags cannot say: tariffs, rates, budgets, rules, webhooks, secrets' files. Flags win over it
    #[arg(long = "config.file", value_name = "FILE", env = "WATTCAST_CONFIG")]
    pub config_file: Option<PathBuf>,

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
    #[serde(default)]
    access: Access,
}

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
}

impl Shared {
    /// Reads the file and puts all together.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn setup(&self) -> Result<Setup> {
        let file = match &self.config_file {
            None => File::default(),
            Some(path) => read(path).with_context(|| format!("{}", path.display()))?,
        };
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
            rate_max_age: self.rate_max_age.unwrap_or(defaults.rate_max_age),
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
        let (probes, nearest) = self.probes(&file)?;
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

    fn probes(&self, file: &File) -> Result<(Vec<OnHost>, Probe)> {
        let mut wanted: Vec<OneProbe> = Vec::new();
        for given in self.probe_urls() {
            // A host name holds neither colon nor slash before its =.
            let (host, url) = match given.split_once('=') {
                Some((host, url)) if !host.contains(['/', ':']) => (host, url),
                _ => ("", &**given),
            };
            wanted.push(OneProbe { host: host.to_owned(), url: url.to_owned(), access: Access::default() });
        }
        if wanted.is_empty() {
            wanted.clone_from(&file.probe);
        }
        if wanted.is_empty() {
            wanted.push(OneProbe {
                host: String::new(),
                url: "http://127.0.0.1:9500".into(),
                access: Access::default(),
            });
        }
        if wanted.len() > 1 && wanted.iter().any(|probe| probe.host.is_empty()) {
            bail!("several probes need their hosts' names, as runs call them: --probe-url enc-1=http://10.0.0.1:9500");
        }
        let mut hosts = BTreeSet::new();
        if let Some(twice) = wanted.iter().find(|probe| !hosts.insert(&probe.host)) {
            bail!("two probes are named for the host {:?}", twice.host);
        }
        let nearest = Probe::new(&wanted[0].url, &wanted[0].access).context("the probe")?;
        let open = |probe: &OneProbe| -> Result<OnHost> {
            Ok(OnHost { host: probe.host.clone(), probe: Probe::new(&probe.url, &probe.access).context("a probe")? })
        };
        Ok((wanted.iter().map(open).collect::<Result<_>>()?, nearest))
    }
}

fn read(path: &Path) -> Result<File> {
    Ok(toml::from_str(&read_whole(path, MAX_FILE)?)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        shared: Shared,
    }

    fn setup(args: &[&str], file: &str) -> Result<Setup> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wattcast.toml");
        fs::write(&path, file).unwrap();
        let args = ["x", "--config.file", path.to_str().unwrap()].into_iter().chain(args.iter().copied());
        Line::try_parse_from(args).unwrap().shared.setup()
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
