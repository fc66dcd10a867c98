//! Values of flags whose variables are not this program's alone: one that is not valid is kept, and
//! reported only where it is used.

use std::ffi::OsStr;

use clap::{
    Arg, Command, Error,
    builder::{PossibleValue, TypedValueParser},
    parser::ValueSource,
};

/// The value of a flag, or of its variable.
#[derive(Clone, Debug)]
pub(crate) struct Given<T> {
    /// Or why it is not valid, which only a value of the environment can be.
    pub(crate) value: Result<T, String>,
    pub(crate) from_env: bool,
}

impl<T: Clone> Given<T> {
    /// The value; for one that is not valid the default, with a warning that names the variable.
    pub(crate) fn or_default(&self, variable: &str, default: T, warnings: &mut Vec<String>) -> T {
        self.value.clone().unwrap_or_else(|why| {
            warnings.push(format!("{variable} is ignored: {why}"));
            default
        })
    }
}

/// Parses as `P` does, but accepts what is not valid in the environment.
#[derive(Clone)]
pub(crate) struct Lenient<P>(pub(crate) P);

impl<P: TypedValueParser> TypedValueParser for Lenient<P> {
    type Value = Given<P::Value>;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Self::Value, Error> {
        Ok(Given { value: Ok(self.0.parse_ref(command, arg, value)?), from_env: false })
    }

    fn parse_ref_(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<Self::Value, Error> {
        let from_env = source == ValueSource::EnvVariable;
        match self.0.parse_ref_(command, arg, value, source) {
            Err(error) if from_env => Ok(Given { value: Err(reason(&error)), from_env }),
            parsed => Ok(Given { value: Ok(parsed?), from_env }),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// The text of an error in one line, without the hint at `--help`.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("error: ").split("\n\nFor more").next().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(text: &str) -> Result<u8, String> {
        text.parse().map_err(|_| "0 to 255".to_owned())
    }

    #[test]
    fn only_the_environment_may_have_a_wrong_value() {
        let mut command = Command::new("x").arg(Arg::new("size").long("size"));
        command.build();
        let arg = command.get_arguments().find(|arg| arg.get_id() == "size");
        let parse = |text: &str, source| Lenient(small).parse_ref_(&command, arg, OsStr::new(text), source);
        assert!(parse("256", ValueSource::CommandLine).is_err());
        let given = parse("256", ValueSource::EnvVariable).unwrap();
        let mut warnings = Vec::new();
        assert_eq!(given.or_default("SIZE", 7, &mut warnings), 7);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("SIZE is ignored: ") && warnings[0].ends_with("0 to 255"), "{warnings:?}");
        let given = parse("255", ValueSource::EnvVariable).unwrap();
        assert_eq!((given.value, given.from_env), (Ok(255), true));
    }
}
