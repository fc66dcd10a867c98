//! The closest known name of a mistyped one.

/// Minimum Jaro similarity of a suggestion; clap uses the same for flags.
const MIN_SIMILARITY: f64 = 0.7;

/// The known name that is most similar to `name`, if any is similar enough.
///
/// ```
/// assert_eq!(cli::suggest::nearest("prise", ["price", "pue"]), Some("price"));
/// assert_eq!(cli::suggest::nearest("zebra", ["price", "pue"]), None);
/// ```
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |candidate: &&str| strsim::jaro(name, candidate);
    known
        .into_iter()
        .filter(|candidate| similarity(candidate) > MIN_SIMILARITY)
        .max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
}

/// Appends the closest known name to an error of serde about an unknown field or variant. Such an
/// error lists all known names, with or without backquotes; any other error is returned as it is.
#[must_use]
pub fn with_suggestion(error: &str) -> String {
    let error = error.trim_end();
    let word = |text: &str| text.trim_matches(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).to_owned();
    let unknown = error.split_once("unknown field `").or_else(|| error.split_once("unknown variant `"));
    let suggestion = unknown.and_then(|(_, rest)| {
        let (name, rest) = rest.split_once('`')?;
        let known: Vec<String> = rest.split_once("expected")?.1.split([',', ' ']).map(word).collect();
        nearest(name, known.iter().map(String::as_str)).map(str::to_owned)
    });
    match suggestion {
        Some(name) => format!("{error}; did you mean {name}?"),
        None => error.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_name_gets_the_closest_known_one() {
        assert_eq!(nearest("prise", ["price", "pue", "scope"]), Some("price"));
        assert_eq!(nearest("zebra", ["price", "pue"]), None);
        assert!(
            with_suggestion("unknown field `cert_fle`, expected one of `cert_file`, `key_file`")
                .ends_with("mean cert_file?")
        );
        assert!(
            with_suggestion("unknown field `tls_server`, expected one of tls_server_config, x at line 1")
                .ends_with("mean tls_server_config?")
        );
        assert_eq!(with_suggestion("expected `=`\n"), "expected `=`");
    }
}
