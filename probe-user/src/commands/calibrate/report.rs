//! The result of a calibration for people.

use std::{fmt::Write as _, path::Path};

use units::provenance::Unmeasured;

use super::loads::Mix;
use crate::attribution::calibration_file::{Calibration, Figure, MixWeight, NOT_MEASURED, ZoneFigures};

/// Width of the columns of figures.
const WIDTH: usize = 16;

/// The tables and notes. `file` is where the content was written.
pub(super) fn text(calibration: &Calibration, file: &Path) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, calibration, file);
    out
}

fn write(out: &mut String, calibration: &Calibration, file: &Path) -> std::fmt::Result {
    let machine = &calibration.machine;
    if let Some(unmeasured) = Unmeasured::of(&machine.source) {
        writeln!(out, "{}", unmeasured.banner())?;
    }
    let name = if machine.processor.is_empty() { "unknown processor" } else { &machine.processor };
    writeln!(
        out,
        "Calibration of {name}, {} packages, {} CPUs, in {:.0} s (with 95 % intervals)\n",
        machine.packages, machine.cpus, calibration.seconds
    )?;
    zones(out, &calibration.zones)?;
    writeln!(out)?;
    match &calibration.smt_weight {
        Some(weight) => writeln!(
            out,
            "SMT weight       {} of a second alone, for a second next to a busy sibling{}",
            figure(Some(weight), 3),
            mixes(&calibration.smt_mixes)
        )?,
        None => writeln!(out, "SMT weight       {NOT_MEASURED}")?,
    }
    for gpu in &calibration.gpus {
        writeln!(
            out,
            "GPU              {} W idle, by {}; engine weights {}; {}",
            figure(Some(&gpu.idle), 1),
            gpu.source,
            gpu.engine_weights,
            gpu.gpu
        )?;
    }
    errors(out, calibration)?;
    for note in &calibration.notes {
        writeln!(out, "note             {note}")?;
    }
    writeln!(
        out,
        "\nWritten to {}. A running probe reads it at its next start: systemctl restart wattcast-probe",
        file.display()
    )
}

/// The SMT weight of each mix.
fn mixes(weights: &[MixWeight]) -> String {
    let each = weights.iter().map(|one| format!("{} {}", one.mix, figure(Some(&one.weight), 3)));
    let each = each.collect::<Vec<_>>().join(", ");
    if each.is_empty() { each } else { format!(" ({each})") }
}

/// Watts of each counter, one per line.
fn zones(out: &mut String, zones: &[ZoneFigures]) -> std::fmt::Result {
    let width = zones.iter().map(|zone| zone.zone.chars().count()).max().unwrap_or(0);
    let mixes = Mix::ALL.map(Mix::as_str);
    write!(out, "{:<width$}  {:>WIDTH$}{:>WIDTH$}{:>WIDTH$}", "watts", "sleep", "awake step", "first core")?;
    for mix in mixes {
        write!(out, "{:>WIDTH$}", format!("{mix}/core"))?;
    }
    writeln!(out)?;
    for zone in zones {
        let cells = [Some(&zone.sleep), zone.awake_step.as_ref(), zone.first_core.as_ref()];
        let of_mix = |mix: &str| zone.mixes.iter().find(|one| one.mix == mix).map(|one| &one.watts_per_core);
        write!(out, "{:<width$}  ", zone.zone)?;
        for cell in cells.into_iter().chain(mixes.map(of_mix)) {
            write!(out, "{:>WIDTH$}", figure(cell, 2))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// How wrong an attribution on this machine is, by the loads that it ran.
fn errors(out: &mut String, calibration: &Calibration) -> std::fmt::Result {
    if let Some(error) = &calibration.mix_error {
        writeln!(
            out,
            "by CPU time      {} gets {:+.0} % and {} {:+.0} % of their energy, with equal CPU time",
            error.cheaper,
            error.cheaper_ratio * 100.0,
            error.dearer,
            error.dearer_ratio * 100.0
        )?;
    }
    if calibration.loads.is_empty() {
        return Ok(());
    }
    let width = calibration.loads.iter().map(|load| load.load.chars().count()).max().unwrap_or(0);
    writeln!(out, "\n{:<width$}  {:>12}{:>12}{:>9}", "load, by the others", "W measured", "W predicted", "error")?;
    for load in &calibration.loads {
        writeln!(
            out,
            "{:<width$}  {:>12.2}{:>12.2}{:>+7.1} %",
            load.load,
            load.measured,
            load.predicted,
            load.ratio() * 100.0
        )?;
    }
    Ok(())
}

fn figure(figure: Option<&Figure>, digits: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |one| format!("{:.digits$} ± {:.digits$}", one.value, one.half()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::calibration_file::{GpuFigures, LoadError, Machine, MixError, MixFigure};

    #[test]
    fn the_table_has_every_figure_and_what_is_missing() {
        let figure = |value: f64| Figure { value, low: value - 0.25, high: value + 0.25 };
        let machine = Machine {
            processor: "Xeon".to_owned(),
            microcode: String::new(),
            packages: 1,
            cpus: 2,
            id: String::new(),
            source: "simulated".to_owned(),
        };
        let mut calibration = Calibration::new(0, 120.0, machine);
        calibration.zones = vec![ZoneFigures {
            zone: "package of package 0".to_owned(),
            sleep: figure(12.5),
            awake_step: None,
            first_core: Some(figure(20.5)),
            mixes: vec![MixFigure { mix: "vector".to_owned(), watts_per_core: figure(6.0) }],
        }];
        calibration.gpus = vec![GpuFigures {
            gpu: "GPU-1".to_owned(),
            source: "fake".to_owned(),
            idle: figure(30.0),
            engine_weights: "not measured".to_owned(),
        }];
        calibration.loads = vec![LoadError { load: "1 core".to_owned(), measured: 10.0, predicted: 9.5 }];
        calibration.mix_error = Some(MixError {
            cheaper: "integer".to_owned(),
            dearer: "vector".to_owned(),
            cheaper_ratio: 0.25,
            dearer_ratio: -0.17,
        });
        calibration.notes = vec!["a note".to_owned()];
        let text = text(&calibration, Path::new("/state/calibration.json"));
        for words in [
            "SIMULATED",
            "package of package 0      12.50 ± 0.25               –    20.50 ± 0.25               –     6.00 ± 0.25               –",
            "SMT weight       not measured",
            "GPU              30.0 ± 0.",
            " W idle, by fake; engine weights not measured; GPU-1",
            "integer gets +25 % and vector -17 % of their energy",
            "10.00        9.50   -5.0 %",
            "note             a note",
            "Written to /state/calibration.json",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        calibration.smt_weight = Some(figure(0.625));
        calibration.smt_mixes = vec![MixWeight { mix: "integer".to_owned(), weight: figure(0.75) }];
        let text = super::text(&calibration, Path::new("/state/calibration.json"));
        assert!(text.contains("next to a busy sibling (integer 0.750 ± 0.250)"), "{text}");
    }
}
