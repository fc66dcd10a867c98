//! TLS with rustls: versions 1.2 and 1.3 with its secure cipher suites. Settings for anything older
//! are errors.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::{TLS12, TLS13},
};

use super::file::TlsSettings;
use cli::{file::read_limited, suggest::nearest};

/// Maximum size of a file with certificates or a key, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The TLS configuration of `settings`, and the files that were read. Relative paths are relative
/// to `dir`.
pub(super) fn config(settings: &TlsSettings, dir: &Path) -> Result<(Arc<ServerConfig>, Vec<PathBuf>), String> {
    let mut files = Vec::new();
    let mut pem = |key: &str, file: &Option<PathBuf>, inline: &Option<String>| -> Result<Option<String>, String> {
        let file = file.as_ref().filter(|file| !file.as_os_str().is_empty());
        match (file, inline.as_ref().filter(|text| !text.is_empty())) {
            (Some(_), Some(_)) => Err(format!("{key} and {key}_file are both set; remove one of them")),
            (None, inline) => Ok(inline.cloned()),
            (Some(file), None) => {
                let file = dir.join(file);
                let text = read_limited(&file, MAX_BYTES).map_err(|error| format!("{}: {error}", file.display()))?;
                files.push(file);
                Ok(Some(text))
            }
        }
    };
    let versions = versions(settings)?;
    let is_set = |file: &Option<PathBuf>, inline: &Option<String>| {
        file.as_ref().is_some_and(|file| !file.as_os_str().is_empty())
            || inline.as_ref().is_some_and(|text| !text.is_empty())
    };
    for (key, file, inline) in
        [("cert_file", &settings.cert_file, &settings.cert), ("key_file", &settings.key_file, &settings.key)]
    {
        if !is_set(file, inline) {
            return Err(format!("{key} is missing"));
        }
    }
    let chain = pem("cert", &settings.cert_file, &settings.cert)?.unwrap_or_default();
    let chain = certificates(&chain).map_err(|error| format!("cert: {error}"))?;
    let key = pem("key", &settings.key_file, &settings.key)?.unwrap_or_default();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| "key: no private key in PEM".to_owned())?;
    let authorities = pem("client_ca", &settings.client_ca_file, &settings.client_ca)?;

    let provider = Arc::new(provider(settings)?);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .map_err(|error| error.to_string())?;
    let builder = match verifier(settings, authorities.as_deref(), &provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| format!("cert and key: {error}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), files))
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("no certificate in PEM".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}

fn versions(settings: &TlsSettings) -> Result<Vec<&'static rustls::SupportedProtocolVersion>, String> {
    let number = |text: &str, default: u8| match text {
        "" => Ok(default),
        "TLS12" => Ok(2),
        "TLS13" => Ok(3),
        "TLS10" | "TLS11" => Err(format!("{text} is insecure (RFC 8996) and not supported; use TLS12 or TLS13")),
        other => Err(format!("{other:?} is not a TLS version; use TLS12 or TLS13")),
    };
    let (min, max) = (number(&settings.min_version, 2)?, number(&settings.max_version, 3)?);
    let versions: Vec<_> = [(2, &TLS12), (3, &TLS13)]
        .into_iter()
        .filter(|(number, _)| (min..=max).contains(number))
        .map(|(_, version)| version)
        .collect();
    if versions.is_empty() { Err("min_version is above max_version".to_owned()) } else { Ok(versions) }
}

/// The cipher suites and curves of `settings`. The file uses the names of Go's crypto/tls, which
/// differ from those of rustls.
fn provider(settings: &TlsSettings) -> Result<CryptoProvider, String> {
    let mut provider = ring::default_provider();
    if !settings.cipher_suites.is_empty() {
        let name = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1);
        let known: Vec<String> = provider.cipher_suites.iter().map(name).collect();
        for wanted in &settings.cipher_suites {
            let wanted = wanted.trim_end_matches("_SHA256");
            if !known.iter().any(|known| known.trim_end_matches("_SHA256") == wanted) {
                let hint = nearest(wanted, known.iter().map(String::as_str)).unwrap_or_default();
                return Err(format!("cipher_suites: {wanted} is not supported; the closest is {hint}"));
            }
        }
        // The suites of TLS 1.3 cannot be chosen, as in Go.
        let is_allowed = |name: &str| {
            settings
                .cipher_suites
                .iter()
                .any(|wanted| wanted.trim_end_matches("_SHA256") == name.trim_end_matches("_SHA256"))
        };
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || is_allowed(&name(suite)));
    }
    if !settings.curve_preferences.is_empty() {
        let supported = std::mem::take(&mut provider.kx_groups);
        for wanted in &settings.curve_preferences {
            let group = match &**wanted {
                "X25519" => rustls::NamedGroup::X25519,
                "CurveP256" => rustls::NamedGroup::secp256r1,
                "CurveP384" => rustls::NamedGroup::secp384r1,
                other => {
                    return Err(format!(
                        "curve_preferences: {other} is not supported; use X25519, CurveP256 or CurveP384"
                    ));
                }
            };
            provider.kx_groups.extend(supported.iter().copied().filter(|known| known.name() == group));
        }
    }
    Ok(provider)
}

/// The client certificate verifier of `client_auth_type`, whose values are those of Go's
/// `tls.ClientAuthType`.
fn verifier(
    settings: &TlsSettings,
    authorities: Option<&str>,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    const KINDS: [&str; 5] = [
        "NoClientCert",
        "RequestClientCert",
        "RequireAnyClientCert",
        "VerifyClientCertIfGiven",
        "RequireAndVerifyClientCert",
    ];
    let kind = match &*settings.client_auth_type {
        "" => KINDS[0],
        // The name in older files.
        "RequireClientCert" => KINDS[2],
        kind => kind,
    };
    if !KINDS.contains(&kind) {
        let hint = nearest(kind, KINDS).unwrap_or(KINDS[4]);
        return Err(format!("client_auth_type {kind:?}; did you mean {hint}?"));
    }
    let verifies = kind.contains("Verify");
    let names = names(&settings.client_allowed_sans)?;
    if kind == "NoClientCert" && authorities.is_some() {
        // An error in exporter-toolkit too: a CA without client authentication is a mistake.
        return Err(format!("client_ca_file has no effect with client_auth_type {kind}"));
    }
    if !names.is_empty() && !kind.starts_with("Require") {
        return Err(format!(
            "client_allowed_sans has no effect with client_auth_type {kind}; use RequireAndVerifyClientCert"
        ));
    }
    let inner: Arc<dyn ClientCertVerifier> = match (kind, authorities) {
        ("NoClientCert", _) => return Ok(None),
        (_, None) if verifies => return Err(format!("client_auth_type {kind} needs client_ca_file")),
        (_, Some(authorities)) if verifies => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(authorities).map_err(|error| format!("client_ca: {error}"))? {
                roots.add(certificate).map_err(|error| format!("client_ca: {error}"))?;
            }
            let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
            let builder = if kind == "VerifyClientCertIfGiven" { builder.allow_unauthenticated() } else { builder };
            builder.build().map_err(|error| format!("client_ca: {error}"))?
        }
        (_, _) => Arc::new(AnyCertificate { required: kind == "RequireAnyClientCert", provider: provider.clone() }),
    };
    Ok(Some(if names.is_empty() { inner } else { Arc::new(AllowedNames { inner, names }) }))
}

fn names(all: &[String]) -> Result<Vec<String>, String> {
    if let Some(name) = all.iter().find(|name| name.contains('@')) {
        return Err(format!(
            "client_allowed_sans: {name:?}: email addresses are not supported; use host names, IP addresses or URIs"
        ));
    }
    Ok(all.to_vec())
}

/// Accepts any certificate whose key the client has, for `RequestClientCert` and
/// `RequireAnyClientCert`.
#[derive(Debug)]
struct AnyCertificate {
    required: bool,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Additionally requires one of `names` as subject alternative name.
#[derive(Debug)]
struct AllowedNames {
    inner: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl ClientCertVerifier for AllowedNames {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let not_valid = rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForName);
        let Ok(certificate) = webpki::EndEntityCert::try_from(end_entity) else { return Err(not_valid) };
        // Names are compared exactly: a certificate for *.example does not match a host there.
        let has_name = |name: &String| {
            let address = name.parse::<IpAddr>().ok().map(|address| ServerName::IpAddress(address.into()));
            certificate.valid_dns_names().any(|known| known == name)
                || certificate.valid_uri_names().any(|known| known == name)
                || address.is_some_and(|address| certificate.verify_is_valid_for_subject_name(&address).is_ok())
        };
        if self.names.iter().any(has_name) { Ok(verified) } else { Err(not_valid) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
