//! Values of labels that come from outside: bounded, printable, and without secrets.

use sha2::{Digest as _, Sha256};

/// Longest value of a label that comes from outside, in characters.
pub const MAX: usize = 128;

/// A name that somebody gave: without control characters, and of bounded length. One that was cut ends in a digest of the whole, so that
/// two of them do not become one.
#[must_use]
pub fn clean(name: &str) -> String {
    let printable = |text: &str, most: usize| -> String {
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(most).collect()
    };
    if name.chars().nth(MAX).is_none() {
        return printable(name, MAX);
    }
    format!("{}~{}", printable(name, MAX - 9), digest(name))
}

/// Eight hexadecimal digits that tell secrets apart and do not tell them: the first of SHA-256. Whoever can guess a secret can check the guess.
#[must_use]
pub fn digest(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_stay_apart() {
        assert_eq!(clean("cam \"1\""), "cam \"1\"");
        assert_eq!(clean("a\nb"), "a\u{fffd}b");
        let long = |last: char| format!("{}{last}", "ü".repeat(4000));
        assert_eq!(clean(&long('a')).chars().count(), MAX);
        assert_ne!(clean(&long('a')), clean(&long('b')));
        assert_eq!(clean(&"x".repeat(MAX)), "x".repeat(MAX));
    }

    #[test]
    fn a_digest_is_the_published_one() {
        // FIPS 180-2, appendix B.1: "abc".
        assert_eq!(digest("abc"), "ba7816bf");
    }
}
