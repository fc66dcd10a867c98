//! The media servers that are read: their addresses, and how each is asked.

use client::{Client, ClientError};

use super::{
    mediamtx,
    server::{ServerError, ServerStats, connect},
    srs,
};

/// Addresses of servers that are tried without a setting.
const MEDIAMTX: [&str; 2] = ["http://127.0.0.1:9997", "http://127.0.0.1:9998/metrics"];
const SRS: [&str; 1] = ["http://127.0.0.1:1985"];

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    MediamtxApi,
    MediamtxMetrics,
    Srs,
}

/// A media server, by the addresses at which it may answer.
pub struct MediaServer {
    /// The label `server`.
    pub name: &'static str,
    /// True when the user has set its address.
    pub wanted: bool,
    places: Vec<(Protocol, Client)>,
}

impl MediaServer {
    /// MediaMTX by the address of its API, or of its page of metrics, which ends in `/metrics`.
    /// Without one, those of its default configuration; `None` for an empty one.
    ///
    /// # Errors
    /// The address is invalid or contains a password.
    pub fn mediamtx(url: Option<&str>) -> Result<Option<Self>, ClientError> {
        let protocol = |base: &str| {
            if base.ends_with("/metrics") { Protocol::MediamtxMetrics } else { Protocol::MediamtxApi }
        };
        Self::new("mediamtx", url, &MEDIAMTX, "/v3/paths/list", protocol)
    }

    /// SRS by the address of its HTTP API. Without one, that of its default configuration; `None`
    /// for an empty one.
    ///
    /// # Errors
    /// The address is invalid or contains a password.
    pub fn srs(url: Option<&str>) -> Result<Option<Self>, ClientError> {
        Self::new("srs", url, &SRS, "/api/v1/streams", |_| Protocol::Srs)
    }

    fn new(
        name: &'static str,
        url: Option<&str>,
        defaults: &[&str],
        path: &str,
        protocol: impl Fn(&str) -> Protocol,
    ) -> Result<Option<Self>, ClientError> {
        let urls: Vec<&str> = url.map_or_else(|| defaults.to_vec(), |url| vec![url]);
        if urls.iter().all(|url| url.trim().is_empty()) {
            return Ok(None);
        }
        let mut places = Vec::new();
        for url in urls {
            let base = url.trim().trim_end_matches('/');
            let base = base.strip_suffix(path).unwrap_or(base);
            places.push((protocol(base), connect(base)?));
        }
        Ok(Some(Self { name, wanted: url.is_some(), places }))
    }

    /// Requests the streams from the first address that answers.
    ///
    /// # Errors
    /// None does; why the one that exists cannot be used.
    pub fn read(&self) -> Result<ServerStats, ServerError> {
        let mut why = ServerError::Absent(format!("{} has no address", self.name));
        for (protocol, client) in &self.places {
            let read = match protocol {
                Protocol::MediamtxApi => mediamtx::read_api(client),
                Protocol::MediamtxMetrics => mediamtx::read_metrics(client),
                Protocol::Srs => srs::read(client),
            };
            match read {
                Ok(stats) => return Ok(stats),
                // One that answers is more to the point than one that does not exist.
                Err(error) if matches!(why, ServerError::Absent(_)) => why = error,
                Err(_) => {}
            }
        }
        Err(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_default_addresses_and_can_be_switched_off() {
        let places = |server: Option<MediaServer>| server.unwrap().places.len();
        assert_eq!(places(MediaServer::mediamtx(None).unwrap()), 2);
        assert_eq!(places(MediaServer::srs(None).unwrap()), 1);
        assert!(MediaServer::srs(Some("")).unwrap().is_none());
        let named = MediaServer::mediamtx(Some("http://127.0.0.1:9998/metrics/")).unwrap().unwrap();
        assert!(named.wanted && named.places[0].0 == Protocol::MediamtxMetrics);
        let api = MediaServer::mediamtx(Some("http://127.0.0.1:1/v3/paths/list")).unwrap().unwrap();
        assert!(api.places[0].0 == Protocol::MediamtxApi);
        let why = api.read().unwrap_err();
        assert_eq!((why.reason(), why.to_string()), ("absent", "http://127.0.0.1:1: cannot be reached".to_owned()));
        for url in ["http://u:hunter2@127.0.0.1:1", "127.0.0.1:1/hunter2"] {
            assert!(!MediaServer::srs(Some(url)).err().unwrap().to_string().contains("hunter2"));
        }
    }
}
