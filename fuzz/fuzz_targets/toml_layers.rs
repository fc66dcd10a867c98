//! Layers of configuration: any TOML text below any flags gives settings or an error. Keys that
//! name files and sources are left out, because the target must not open them.
#![no_main]

use clap::Parser as _;
use results::settings::DataFlags;

#[derive(clap::Parser)]
struct CommandLine {
    #[command(flatten)]
    data: DataFlags,
}

libfuzzer_sys::fuzz_target!(|input: (&str, bool, f64)| {
    let (text, with_flags, price) = input;
    if ["file", "history", "url"].iter().any(|word| text.contains(word)) {
        return;
    }
    let Ok(table) = toml::from_str::<toml::Table>(text) else { return };
    let price = format!("--energy.price={price}");
    let line = if with_flags { vec!["x", price.as_str()] } else { vec!["x"] };
    let Ok(flags) = CommandLine::try_parse_from(line) else { return };
    if let Ok(settings) = flags.data.settings(&table) {
        assert!(settings.vmaf_targets.iter().all(|target| target.is_finite()));
    }
});
