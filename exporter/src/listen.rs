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

/// Where to listen with another port, beside these addresses: each host once, and none that another covers.
#[must_use]
pub fn all_beside(addresses: &[Listen], port: u16) -> Vec<Listen> {
    let mut all: Vec<Listen> = Vec::new();
    for address in addresses.iter().map(|address| address.beside(port)) {
        let covered = |by: &Listen| {
            let (by, address) = (by.0, address.0);
            let wild = by.ip().is_unspecified() && (by.is_ipv6() || address.is_ipv4());
            by == address && by.port() != 0 || by.port() == address.port() && by.port() != 0 && wild
        };
        if !all.iter().any(covered) {
            all.retain(|other| {
                let wild = address.0.ip().is_unspecified() && (address.0.is_ipv6() || other.0.is_ipv4());
                !(wild && address.0.port() == other.0.port() && address.0.port() != 0)
            });
            all.push(address);
        }
    }
    all
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
    fn a_port_beside_several_addresses_is_taken_once_of_each_host() {
        let beside = |addresses: &[&str]| -> Vec<String> {
            let addresses: Vec<Listen> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            all_beside(&addresses, 9501).iter().map(ToString::to_string).collect()
        };
        assert_eq!(beside(&["127.0.0.1:9500", "127.0.0.1:9600"]), ["127.0.0.1:9501"]);
        assert_eq!(beside(&["127.0.0.1:9500", "10.0.0.1:9500"]), ["127.0.0.1:9501", "10.0.0.1:9501"]);
        assert_eq!(beside(&["127.0.0.1:9500", ":9500"]), ["[::]:9501"]);
        assert_eq!(beside(&[":9500", "127.0.0.1:9500"]), ["[::]:9501"]);
        assert_eq!(beside(&["127.0.0.1:0", "127.0.0.1:0"]), ["127.0.0.1:0", "127.0.0.1:0"]);
    }

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
