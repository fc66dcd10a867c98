//! Listen addresses as exporter-toolkit writes them: `:9500`, `127.0.0.1:9500`, `[::1]:9500`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// An address to listen on. `:PORT` means every address, as with every other exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

/// What is wrong with an address, in the words of the person who typed it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a listen address: give HOST:PORT, [IPV6]:PORT or :PORT, for example 127.0.0.1:9500")]
pub struct NotAnAddress(String);

impl Listen {
    /// Another port of the same host; any, where this one is any.
    #[must_use]
    pub fn beside(&self, port: u16) -> Self {
        let port = if self.0.port() == 0 { 0 } else { port };
        Self(SocketAddr::new(self.0.ip(), port))
    }
}

impl FromStr for Listen {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let wrong = || NotAnAddress(text.to_owned());
        if let Some(port) = text.strip_prefix(':') {
            let port = port.parse().map_err(|_| wrong())?;
            return Ok(Self(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)));
        }
        let text = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
        text.parse().map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_exporter_toolkit_are_taken() {
        let at = |text: &str| text.parse::<Listen>().map(|listen| listen.to_string());
        assert_eq!(at(":9500").unwrap(), "[::]:9500");
        assert_eq!(at("127.0.0.1:9500").unwrap(), "127.0.0.1:9500");
        assert_eq!(at("[::1]:9500").unwrap(), "[::1]:9500");
        assert_eq!(at("localhost:0").unwrap(), "127.0.0.1:0");
    }

    #[test]
    fn what_is_not_an_address_is_said() {
        for text in ["", "9500", ":", ":70000", "host", "1.2.3.4", "[::1]"] {
            let error = text.parse::<Listen>().unwrap_err().to_string();
            assert!(error.contains("for example 127.0.0.1:9500"), "{error}");
        }
    }
}
