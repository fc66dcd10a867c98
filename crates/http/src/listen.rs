//! Listen addresses in the notation of exporter-toolkit: `:9500`, `127.0.0.1:9500`, `[::1]:9500`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// A listen address. `:PORT` is the wildcard address, as in exporter-toolkit.
///
/// ```
/// use http::listen::ListenAddress;
///
/// let address: ListenAddress = ":9500".parse()?;
/// assert_eq!(address.to_string(), "[::]:9500");
/// # Ok::<(), http::listen::InvalidListenAddress>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

/// A text that is not a listen address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a listen address: expected HOST:PORT, [IPV6]:PORT or :PORT, for example 127.0.0.1:9500")]
pub struct InvalidListenAddress(String);

impl ListenAddress {
    /// The same host with another port. Port 0, which the kernel chooses, stays 0.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        let port = if self.0.port() == 0 { 0 } else { port };
        Self(SocketAddr::new(self.0.ip(), port))
    }
}

/// The hosts of `addresses` with another port, without addresses that another one covers.
#[must_use]
pub fn with_port(addresses: &[ListenAddress], port: u16) -> Vec<ListenAddress> {
    let covers = |wide: SocketAddr, address: SocketAddr| {
        let wildcard = wide.ip().is_unspecified() && (wide.is_ipv6() || address.is_ipv4());
        wide.port() != 0 && wide.port() == address.port() && (wide == address || wildcard)
    };
    let mut distinct: Vec<ListenAddress> = Vec::new();
    for address in addresses.iter().map(|address| address.with_port(port)) {
        if !distinct.iter().any(|other| covers(other.0, address.0)) {
            distinct.retain(|other| !covers(address.0, other.0));
            distinct.push(address);
        }
    }
    distinct
}

impl FromStr for ListenAddress {
    type Err = InvalidListenAddress;

    fn from_str(text: &str) -> Result<Self, InvalidListenAddress> {
        let invalid = || InvalidListenAddress(text.to_owned());
        if let Some(port) = text.strip_prefix(':') {
            let port = port.parse().map_err(|_| invalid())?;
            return Ok(Self(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)));
        }
        let text = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
        text.parse().map(Self).map_err(|_| invalid())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_port_is_used_once_for_each_host() {
        let on_9501 = |addresses: &[&str]| -> Vec<String> {
            let addresses: Vec<ListenAddress> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            with_port(&addresses, 9501).iter().map(ToString::to_string).collect()
        };
        assert_eq!(on_9501(&["127.0.0.1:9500", "127.0.0.1:9600"]), ["127.0.0.1:9501"]);
        assert_eq!(on_9501(&["127.0.0.1:9500", "10.0.0.1:9500"]), ["127.0.0.1:9501", "10.0.0.1:9501"]);
        assert_eq!(on_9501(&["127.0.0.1:9500", ":9500"]), ["[::]:9501"]);
        assert_eq!(on_9501(&[":9500", "127.0.0.1:9500"]), ["[::]:9501"]);
        assert_eq!(on_9501(&["127.0.0.1:0", "127.0.0.1:0"]), ["127.0.0.1:0", "127.0.0.1:0"]);
    }

    #[test]
    fn notations_of_exporter_toolkit_are_accepted() {
        let parsed = |text: &str| text.parse::<ListenAddress>().map(|listen| listen.to_string());
        assert_eq!(parsed(":9500").unwrap(), "[::]:9500");
        assert_eq!(parsed("127.0.0.1:9500").unwrap(), "127.0.0.1:9500");
        assert_eq!(parsed("[::1]:9500").unwrap(), "[::1]:9500");
        assert_eq!(parsed("localhost:0").unwrap(), "127.0.0.1:0");
    }

    #[test]
    fn invalid_address_is_an_error_with_an_example() {
        for text in ["", "9500", ":", ":70000", "host", "1.2.3.4", "[::1]"] {
            let error = text.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains("for example 127.0.0.1:9500"), "{error}");
        }
    }
}
