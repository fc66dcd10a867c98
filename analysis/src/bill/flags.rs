//! The flags of `bill`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use results::{
    bill::{GroupBy, IdleShare},
    cost::money,
    settings::DataFlags,
};
use rust_decimal::Decimal;

/// Where the energy of the period is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum UsageSource {
    /// The database if one is configured, else configured probes, else the job log
    #[default]
    Auto,
    /// Prometheus or VictoriaMetrics (--database.url)
    Database,
    /// The log of ended ffmpeg jobs, streams.ndjson
    Log,
    /// Windows of the probes (--probe-url), as far as their memory reaches
    Probes,
}

/// The format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BillFormat {
    /// Table for people
    #[default]
    Table,
    /// Comma-separated values, every digit
    Csv,
    /// JSON, every digit
    Json,
    /// Web page without scripts
    Html,
}

#[derive(Clone, Debug, Args)]
pub struct Bill {
    /// Month in the time zone of the tariff, for example 2026-11
    #[arg(long, value_name = "YEAR-MONTH", conflicts_with_all = ["from", "to"])]
    pub month: Option<String>,

    /// First day, or start time, for example 2026-11-01 or 2026-11-01T06:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,

    /// Day or time after the end [default: now]
    #[arg(long, value_name = "TIME", requires = "from")]
    pub to: Option<String>,

    /// Rows of the bill
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub by: GroupBy,

    /// Container label, for --by label (the probe exports those of --container.labels)
    #[arg(long, value_name = "NAME", required_if_eq("by", "label"))]
    pub label: Option<String>,

    /// Only these hosts, as the database names them, without port; repeatable
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',')]
    pub hosts: Vec<String>,

    /// Division of idle energy
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub idle: IdleShare,

    /// Emissions of the production of one host, in grams of CO2 equivalents for each hour
    ///
    /// M of the software carbon intensity (ISO/IEC 21031); 300 kg over 4 years are 8.6 g.
    #[arg(long = "embodied.grams-per-hour", value_name = "GRAMS", value_parser = money::decimal)]
    pub embodied: Option<Decimal>,

    /// Source of the energy
    #[arg(long, value_name = "SOURCE", value_enum, default_value_t)]
    pub source: UsageSource,

    /// Log of ended jobs, for --source log [default: RESULTS_DIR/streams.ndjson]
    #[arg(long = "streams.record", value_name = "FILE", env = "STREAMS_RECORD")]
    pub record: Option<PathBuf>,

    /// Output format
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub format: BillFormat,

    /// Output file instead of standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub shared: DataFlags,
}
