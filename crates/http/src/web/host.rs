//! Protection against DNS rebinding: a page of another site makes a browser of this host read the
//! metrics, by a name of its own that it lets resolve to 127.0.0.1.
//!
//! Only a browser can be misused like this, and only a server that listens on loopback or asks for
//! no password needs it. A request is refused if all of this is true:
//!
//! - it comes from a loopback address, without TLS and without required credentials;
//! - it has a header that browsers always send and scrapers do not;
//! - its `Host` is a name that a site can own: no address, not `localhost`, not this machine's
//!   name, no name without a dot, no reserved suffix, and not in `allowed_hosts`.
//!
//! A page can set many headers of its requests, but cannot remove `Accept-Language`, and with
//! `allowed_hosts` in the web configuration the check is extended to all addresses.

use std::net::IpAddr;

use axum::http::{
    HeaderMap, HeaderName,
    header::{ACCEPT_LANGUAGE, HOST, ORIGIN, USER_AGENT},
};

/// Suffixes that cannot be registered in the public DNS (RFC 6761, 6762, 8375; ICANN for
/// `.internal`).
const RESERVED: [&str; 6] = [".localhost", ".local", ".internal", ".home.arpa", ".test", ".localdomain"];
/// Fetch metadata, which only browsers send; on plain HTTP they send it to loopback addresses only.
const FETCH_METADATA: [&str; 3] = ["sec-fetch-mode", "sec-fetch-site", "sec-fetch-dest"];

/// True if the request comes from a browser.
fn is_browser(headers: &HeaderMap) -> bool {
    let named_like_one = headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/"));
    let fetch = FETCH_METADATA.into_iter().map(HeaderName::from_static).any(|name| headers.contains_key(name));
    named_like_one || fetch || headers.contains_key(ACCEPT_LANGUAGE) || headers.contains_key(ORIGIN)
}

/// The name in a `Host` header, in lower case, without its port and the final dot; `None` for an IP
/// address.
fn host_name(host: &str) -> Option<String> {
    if host.starts_with('[') {
        return None;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if name.parse::<IpAddr>().is_ok() { None } else { Some(name) }
}

/// The refused name, if the request may be one of a rebound page. `own` is the name of this
/// machine, `allowed` are the names of the configuration.
pub(super) fn foreign_host(headers: &HeaderMap, from: IpAddr, own: &str, allowed: &[String]) -> Option<String> {
    if !is_browser(headers) || allowed.is_empty() && !from.to_canonical().is_loopback() {
        return None;
    }
    let own = own.to_ascii_lowercase();
    let is_known = |name: &str| {
        let reserved = RESERVED.iter().any(|suffix| name.ends_with(suffix));
        let this_machine = !own.is_empty() && name == own;
        !name.contains('.') || reserved || this_machine || allowed.iter().any(|other| other.eq_ignore_ascii_case(name))
    };
    // A request with two of them is refused if one of them is foreign.
    let hosts = headers.get_all(HOST).into_iter();
    let mut names = hosts.filter_map(|host| host_name(&String::from_utf8_lossy(host.as_bytes())));
    names.find(|name| !is_known(name))
}

/// The body of the refusal.
pub(super) fn refusal(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
    format!(
        "Host {name:?} is not a name of this server (DNS rebinding). Use its address or localhost, or add the name to \
         allowed_hosts in --web.config.file\n"
    )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn refused(all: &[(&'static str, &str)], from: &str, allowed: &[&str]) -> bool {
        let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        foreign_host(&headers(all), from.parse().unwrap(), "encoder.example.org", &allowed).is_some()
    }

    #[test]
    fn a_browser_with_a_rebound_name_is_refused() {
        let evil = ("host", "evil.example:9500");
        for mark in [
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"),
            ("accept-language", "en"),
            ("sec-fetch-mode", "cors"),
            ("origin", "http://evil.example:9500"),
        ] {
            for from in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
                assert!(refused(&[evil, mark], from, &[]), "{mark:?} from {from}");
            }
            assert!(!refused(&[evil, mark], "127.0.0.1", &["Evil.example"]), "allowed by the configuration");
            assert!(!refused(&[evil, mark], "10.0.0.1", &[]), "people open other addresses by name");
            assert!(refused(&[evil, mark], "10.0.0.1", &["good.example"]), "with a list it holds everywhere");
            assert!(refused(&[("host", "localhost"), evil, mark], "127.0.0.1", &[]), "two hosts");
        }
    }

    #[test]
    fn a_scraper_by_any_name_is_answered() {
        for agent in ["Prometheus/2.53.0", "curl/8.5.0", "Go-http-client/1.1", "python-requests/2.31", "Telegraf/1.30"]
        {
            let all = [("host", "host.example:9500"), ("user-agent", agent), ("accept-encoding", "gzip")];
            assert!(!refused(&all, "127.0.0.1", &[]), "{agent}");
            assert!(!refused(&all, "10.0.0.1", &["other.example"]), "{agent}");
        }
    }

    #[test]
    fn names_of_this_machine_are_answered_to_browsers() {
        for host in [
            "127.0.0.1:9500",
            "[::1]:9500",
            "10.1.2.3",
            "localhost:9500",
            "LOCALHOST",
            "encoder.example.org:9500",
            "encoder.example.org.:9500",
            "probe:9500",
            "encoder.local",
            "wattcast.localhost:9500",
        ] {
            assert!(!refused(&[("host", host), ("user-agent", "Mozilla/5.0")], "127.0.0.1", &[]), "{host}");
        }
    }

    #[test]
    fn the_refusal_says_what_to_do() {
        assert_eq!(
            refusal("evil.example"),
            "Host \"evil.example\" is not a name of this server (DNS rebinding). Use its address or localhost, or add the name to allowed_hosts in --web.config.file\n"
        );
    }
}
