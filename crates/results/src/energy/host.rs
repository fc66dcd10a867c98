//! Host names: the name of this machine, and comparison of addresses with host names.

pub use cli::host::name as this_host;

/// True if `address`, a host name with or without port (`enc-1:9500`), is that of `host`.
#[must_use]
pub fn same_host(address: &str, host: &str) -> bool {
    address == host || address.strip_prefix(host).is_some_and(|port| port.strip_prefix(':').is_some_and(is_port))
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}
