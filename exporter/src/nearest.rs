//! The nearest right name of a wrong one, for whoever mistyped it.

/// Words less alike than this are different words; what clap takes for flags.
const ALIKE: f64 = 0.7;

/// The known name that is most like a given one, if any is.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let alike = |name: &&str| strsim::jaro(given, name);
    known.into_iter().filter(|name| alike(name) > ALIKE).max_by(|one, other| alike(one).total_cmp(&alike(other)))
}

/// An error of serde about an unknown name, with the nearest right one; serde lists them all, in backquotes or without.
#[must_use]
pub fn explain(error: &str) -> String {
    let error = error.trim_end();
    let word = |text: &str| text.trim_matches(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).to_owned();
    let found = error.split_once("unknown field `").or_else(|| error.split_once("unknown variant `"));
    let names = found.and_then(|(_, rest)| {
        let (given, rest) = rest.split_once('`')?;
        let known: Vec<String> = rest.split_once("expected")?.1.split([',', ' ']).map(word).collect();
        nearest(given, known.iter().map(String::as_str)).map(str::to_owned)
    });
    match names {
        Some(nearest) => format!("{error}; did you mean {nearest}?"),
        None => error.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_answered_with_the_right_one() {
        assert_eq!(nearest("prise", ["price", "pue", "scope"]), Some("price"));
        assert_eq!(nearest("zebra", ["price", "pue"]), None);
        assert!(
            explain("unknown field `cert_fle`, expected one of `cert_file`, `key_file`").ends_with("mean cert_file?")
        );
        assert!(
            explain("unknown field `tls_server`, expected one of tls_server_config, x at line 1")
                .ends_with("mean tls_server_config?")
        );
        assert_eq!(explain("expected `=`\n"), "expected `=`");
    }
}
