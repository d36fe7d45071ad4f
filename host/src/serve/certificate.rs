//! The certificate of the server: loads it and reports its validity.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode as _, SliceReader, Tag, Tagged as _};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Error;
use crate::config;
use crate::small_file::read_regular_text;

/// TLS settings, and the validity of their certificates.
pub(super) struct Certificate {
    pub(super) settings: Arc<rustls::ServerConfig>,
    pub(super) validity: Validity,
}

/// The validity of a certificate and of those on which it depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub begin: Timestamp,
    /// The last moment.
    pub end: Timestamp,
}

/// Reads certificate and key, if configured.
pub(super) fn read(config: &config::Serve) -> Result<Option<Certificate>, Error> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else {
        return Ok(None);
    };
    let chain = chain(cert)?;
    let validity = validity(&chain).map_err(|error| unreadable("serve.tls_cert", cert, &error))?;
    let key_text = text("serve.tls_key", key)?;
    let key_der = PrivateKeyDer::from_pem_slice(key_text.as_bytes())
        .map_err(|error| unreadable("serve.tls_key", key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut settings = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, key_der)
        })
        .map_err(|error| Error::Tls(format!("certificate and key do not match: {error}")))?;
    // In the order of preference: the first one that the client knows as well is used.
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Certificate {
        settings: Arc::new(settings),
        validity,
    }))
}

/// The validity of the certificate in a file.
pub fn certificate_validity(cert: &Path) -> Result<Validity, Error> {
    validity(&chain(cert)?).map_err(|error| unreadable("serve.tls_cert", cert, &error))
}

fn chain(cert: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = text("serve.tls_cert", cert)?;
    let chain = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable("serve.tls_cert", cert, &error))?;
    if chain.is_empty() {
        return Err(unreadable(
            "serve.tls_cert",
            cert,
            &"there is no certificate in it",
        ));
    }
    Ok(chain)
}

/// The text of a PEM file, which a running host reads again: it may be anything by then.
fn text(name: &str, file: &Path) -> Result<String, Error> {
    read_regular_text(file).map_err(|error| unreadable(name, file, &error))
}

fn unreadable(name: &str, file: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Tls(format!(
        "{name} {}: {error}; it must be a PEM file",
        file.display()
    ))
}

/// The intersection of the validities of a chain: clients refuse a certificate if one on which it
/// depends has expired.
fn validity(chain: &[CertificateDer<'_>]) -> Result<Validity, String> {
    let mut whole: Option<Validity> = None;
    for certificate in chain {
        let (begin, end) =
            times(certificate).map_err(|error| format!("not an X.509 certificate: {error}"))?;
        let time = |seconds: Duration| {
            let seconds = i64::try_from(seconds.as_secs()).map_err(|error| error.to_string())?;
            Timestamp::from_second(seconds).map_err(|error| error.to_string())
        };
        let (begin, end) = (time(begin)?, time(end)?);
        whole = Some(match whole {
            None => Validity { begin, end },
            Some(Validity {
                begin: latest,
                end: first,
            }) => Validity {
                begin: begin.max(latest),
                end: end.min(first),
            },
        });
    }
    whole.ok_or_else(|| "there is no certificate in it".to_owned())
}

/// Validity of a certificate, since 1970. Source: RFC 5280, section 4.1.
fn times(certificate: &[u8]) -> der::Result<(Duration, Duration)> {
    let certificate = AnyRef::from_der(certificate)?;
    // The signed part is the first field of a certificate; the rest is its signature.
    let signed = AnyRef::decode(&mut SliceReader::new(certificate.value())?)?;
    let mut fields = SliceReader::new(signed.value())?;
    // The version is optional; serial number, algorithm and issuer follow.
    let first = AnyRef::decode(&mut fields)?;
    let skipped = if first.tag().is_context_specific() {
        3
    } else {
        2
    };
    for _ in 0..skipped {
        AnyRef::decode(&mut fields)?;
    }
    let validity = AnyRef::decode(&mut fields)?;
    let mut times = SliceReader::new(validity.value())?;
    let begin = time(AnyRef::decode(&mut times)?)?;
    Ok((begin, time(AnyRef::decode(&mut times)?)?))
}

fn time(value: AnyRef<'_>) -> der::Result<Duration> {
    // Times before 2050 are of the first kind (RFC 5280, 4.1.2.5).
    match value.tag() {
        Tag::UtcTime => Ok(value.decode_as::<UtcTime>()?.to_unix_duration()),
        _ => Ok(value.decode_as::<GeneralizedTime>()?.to_unix_duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(begin: i32, end: i32) -> CertificateDer<'static> {
        let mut parameters =
            rcgen::CertificateParams::new(["localhost".to_owned()]).expect("sound");
        parameters.not_before = rcgen::date_time_ymd(begin, 1, 2);
        parameters.not_after = rcgen::date_time_ymd(end, 3, 4);
        let key = rcgen::KeyPair::generate().expect("a key");
        parameters
            .self_signed(&key)
            .expect("a certificate")
            .der()
            .clone()
    }

    #[test]
    fn a_chain_counts_while_all_of_it_does() {
        let shown = |chain: &[CertificateDer<'_>]| {
            let Validity { begin, end } = validity(chain).expect("sound");
            (begin.to_string(), end.to_string())
        };
        let one = shown(&[certificate(2020, 2060)]);
        assert_eq!(
            one,
            (
                "2020-01-02T00:00:00Z".to_owned(),
                "2060-03-04T00:00:00Z".to_owned()
            )
        );
        let chain = shown(&[certificate(2020, 2060), certificate(2021, 2030)]);
        assert_eq!(
            chain,
            (
                "2021-01-02T00:00:00Z".to_owned(),
                "2030-03-04T00:00:00Z".to_owned()
            )
        );
        assert!(validity(&[CertificateDer::from(b"no certificate".as_slice())]).is_err());
    }
}
