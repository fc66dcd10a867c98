//! Label values from external input: bounded, printable, and without secrets.

use sha2::{Digest as _, Sha256};

/// Maximum length of a label value from external input, in characters.
pub const MAX_CHARS: usize = 128;

/// Replaces control characters of `name` and limits it to [`MAX_CHARS`]. A truncated name ends in a
/// digest of the whole name, so that two long names with a common prefix stay distinct.
#[must_use]
pub fn sanitize(name: &str) -> String {
    let printable = |text: &str, max_chars: usize| -> String {
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(max_chars).collect()
    };
    if name.chars().nth(MAX_CHARS).is_none() {
        return printable(name, MAX_CHARS);
    }
    format!("{}~{}", printable(name, MAX_CHARS - 9), digest(name))
}

/// The first eight hexadecimal digits of the SHA-256 of `secret`: distinguishes secrets without
/// revealing them. It does not protect a secret that can be guessed, because the digest of a guess
/// can be compared.
#[must_use]
pub fn digest(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_truncated_and_stay_distinct() {
        assert_eq!(sanitize("cam \"1\""), "cam \"1\"");
        assert_eq!(sanitize("a\nb"), "a\u{fffd}b");
        let long = |last: char| format!("{}{last}", "ü".repeat(4000));
        assert_eq!(sanitize(&long('a')).chars().count(), MAX_CHARS);
        assert_ne!(sanitize(&long('a')), sanitize(&long('b')));
        assert_eq!(sanitize(&"x".repeat(MAX_CHARS)), "x".repeat(MAX_CHARS));
    }

    #[test]
    fn digest_matches_the_sha_256_test_vector() {
        // FIPS 180-2, appendix B.1: "abc".
        assert_eq!(digest("abc"), "ba7816bf");
    }
}
