//! Options of ffmpeg without a value. Every other option has one.
//!
//! The table is the union of what ffmpeg 5.1 (Debian) and 9.0 (imageio-ffmpeg) read without a
//! value. The names are those of the main sections of `ffmpeg -h full`. Whether one has a value is
//! not taken from that text, which omits the value of about forty options (`-seek_timestamp`,
//! `-filter_threads`) and shows one of `-xerror`, which has none. It is taken from the log of one
//! call with every option in front of a word: `ffmpeg -loglevel debug -y value -n value …
//! -no_such_option` says of each option which argument it has, and reads no file. The test does the
//! same with the installed ffmpeg.
//!
//! Options that print a list and exit are missing: their process has no output.

/// Options without a value, sorted.
const SWITCHES: [&str; 37] = [
    "accurate_seek",
    "an",
    "auto_conversion_filters",
    "benchmark",
    "benchmark_all",
    "bitexact",
    "copy_unknown",
    "copyinkf",
    "copyts",
    "debug_ts",
    "display_hflip",
    "display_vflip",
    "dn",
    "dump",
    "find_stream_info",
    "fix_sub_duration",
    "fix_sub_duration_heartbeat",
    "force_fps",
    "hex",
    "hide_banner",
    "ignore_unknown",
    "n",
    "print_graphs",
    "psnr",
    "qphist",
    "re",
    "recast_media",
    "report",
    "shortest",
    "sn",
    "start_at_zero",
    "stats",
    "stdin",
    "vn",
    "vstats",
    "xerror",
    "y",
];

/// Options without a value of versions before 5.1.
const OLDER_SWITCHES: [&str; 2] = ["deinterlace", "intra"];

/// Options with a value in 5.1 and without one in 9.0.
const OPTIONAL: [&str; 2] = ["autorotate", "autoscale"];

/// True for an option without a value, by its name without `-` and stream specifier, and for its
/// `no` form. `next` is the next word of the command line.
#[must_use]
pub(super) fn is_switch(name: &str, next: Option<&str>) -> bool {
    let positive = |name: &str| SWITCHES.binary_search(&name).is_ok() || OLDER_SWITCHES.contains(&name);
    if let Some(inverted) = name.strip_prefix("no")
        && (positive(inverted) || OPTIONAL.contains(&inverted))
    {
        return true;
    }
    // The value of these can only be a truth value, which no output is named after.
    positive(name) || OPTIONAL.contains(&name) && !matches!(next, Some("0" | "1"))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::Path,
        process::Command,
    };

    use super::*;

    /// The options of the main sections of `-h full`.
    fn listed(ffmpeg: &Path) -> BTreeSet<String> {
        let help = Command::new(ffmpeg).args(["-hide_banner", "-h", "full"]).output().unwrap();
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let main = help.split("AVOptions:").next().unwrap_or_default();
        let names = main.lines().filter_map(|line| {
            let word = line.strip_prefix('-')?.split([' ', '[']).next()?;
            let plain = word.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
            (plain && !word.is_empty()).then(|| word.to_owned())
        });
        names.collect()
    }

    /// True for each of `names` that ffmpeg reads without a value.
    fn read_by(ffmpeg: &Path, names: &BTreeSet<String>) -> BTreeMap<String, bool> {
        // The report is a file in the current directory.
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(ffmpeg);
        command.current_dir(dir.path()).args(["-loglevel", "debug"]);
        for name in names {
            command.args([format!("-{name}").as_str(), "value"]);
        }
        let log = command.arg("-no_such_option").output().unwrap().stderr;
        let log = String::from_utf8_lossy(&log).into_owned();
        let read = log.split("Reading option '-").skip(1).filter_map(|entry| {
            let (name, rest) = entry.split_once('\'')?;
            let argument = rest.lines().next()?.rsplit_once("with argument '")?.1;
            Some((name.to_owned(), argument.starts_with("1'")))
        });
        read.collect()
    }

    #[test]
    fn ffmpeg_options_without_a_value_are_those_of_ffmpeg_itself() {
        testkit::requires!(ffmpeg);
        let python = testkit::require::python("import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())");
        let newer = python.map(|(_, path)| path.trim().to_owned());
        for ffmpeg in ["ffmpeg".to_owned()].into_iter().chain(newer) {
            let mut names = listed(Path::new(&ffmpeg));
            // These two set the log itself.
            names.retain(|name| name != "loglevel" && name != "v");
            let read = read_by(Path::new(&ffmpeg), &names);
            assert!(read.len() > 100, "{ffmpeg}: {} options", read.len());
            let differing: Vec<_> = read
                .iter()
                .filter(|(name, without)| !OPTIONAL.contains(&&***name) && is_switch(name, Some("value")) != **without)
                .collect();
            assert!(differing.is_empty(), "{ffmpeg}: {differing:?}");
        }
    }

    #[test]
    fn the_table_of_switches_is_sorted_and_covers_their_no_forms() {
        assert!(SWITCHES.is_sorted());
        for name in ["y", "nostdin", "nostats", "noauto_conversion_filters", "noautorotate", "noxerror", "autoscale"] {
            assert!(is_switch(name, Some("-i")), "{name}");
        }
        for name in ["seek_timestamp", "filter_threads", "noise", "no", "c", ""] {
            assert!(!is_switch(name, Some("-i")), "{name}");
        }
        assert!(!is_switch("autorotate", Some("1")) && is_switch("autorotate", Some("-i")));
    }
}
