//! Explains failures of TLS: the cause, and what to do.

use rustls::{
    AlertDescription, CertificateError, Error as TlsError, InconsistentKeys, InvalidMessage,
};

use crate::error::{Error, Kind};
use crate::model::text::printable;

/// Maximum number of names of a certificate to show.
const MAX_NAMES: usize = 5;

/// Maximum number of characters to show of a name or a cause.
const MAX_TEXT: usize = 200;

/// Explains why TLS with `host` failed: an error with cause and remedy, or `None` if it may pass by
/// itself.
#[must_use]
pub fn explain(error: &TlsError, host: &str) -> Option<Error> {
    let unavailable = |cause: String| Some(Error::new(Kind::Unavailable, cause));
    match error {
        TlsError::InvalidCertificate(why) => unavailable(format!(
            "the broker's certificate {}",
            certificate(why, host)
        )),
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => unavailable(
            "the broker does not speak TLS on this port: use mqtt:// without --cafile, or the \
             port for TLS, usually 8883"
                .into(),
        ),
        TlsError::AlertReceived(alert) => alerted(*alert),
        TlsError::PeerIncompatible(why) => unavailable(format!(
            "the broker's TLS does not fit: {why:?}; TLS 1.2 or later with RSA, P-256, P-384 or \
             Ed25519 is needed"
        )),
        TlsError::NoApplicationProtocol => {
            unavailable("the broker knows none of the protocols that --tls-alpn names".into())
        }
        other => unavailable(format!(
            "TLS failed: {}",
            printable(&other.to_string(), MAX_TEXT)
        )),
    }
}

/// Explains why our own certificate and key cannot be used.
#[must_use]
pub fn own_files(error: &TlsError) -> String {
    match error {
        TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "the key is not that of the certificate".into()
        }
        TlsError::InvalidCertificate(CertificateError::BadEncoding) => {
            "the certificate is damaged".into()
        }
        TlsError::InvalidCertificate(why) => format!("the certificate {}", certificate(why, "")),
        other => printable(&other.to_string(), MAX_TEXT),
    }
}

/// Describes what is wrong with a certificate, after "the broker's certificate".
fn certificate(error: &CertificateError, host: &str) -> String {
    use CertificateError as E;
    let day = |time: &rustls::pki_types::UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or_else(|_| "?".into(), |t| t.to_string())
    };
    match error {
        E::UnknownIssuer => "is signed by an authority that is not trusted here: name the \
                             authority's certificate by --cafile"
            .into(),
        E::Expired => "has expired: renew it".into(),
        E::ExpiredContext { not_after, .. } => format!(
            "has expired on {}: renew it, or set this host's clock",
            day(not_after)
        ),
        E::NotValidYet => "is not valid yet: is this host's clock right?".into(),
        E::NotValidYetContext { not_before, .. } => format!(
            "is not valid before {}: is this host's clock right?",
            day(not_before)
        ),
        E::NotValidForNameContext {
            expected,
            presented,
        } if presented.is_empty() => format!(
            "names no host: its subjectAltName is missing (a common name does not count); issue \
             it again with subjectAltName DNS:{}, or IP: for an address",
            expected.to_str()
        ),
        E::NotValidForNameContext {
            expected,
            presented,
        } => {
            let names: Vec<String> = presented.iter().take(MAX_NAMES).map(|n| plain(n)).collect();
            format!(
                "is for {}, not for '{}': connect by a name that it is for, or give that name by \
                 --tls-server-name",
                names.join(", "),
                expected.to_str()
            )
        }
        E::NotValidForName => format!("is not for '{host}'"),
        E::UnsupportedSignatureAlgorithmContext { .. }
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "has a key or signature that is not supported, for example P-521 or SHA-1: use RSA, \
             P-256, P-384 or Ed25519"
                .into()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "is not for servers: issue it again with extendedKeyUsage serverAuth".into()
        }
        E::Revoked => "is revoked".into(),
        E::BadSignature => {
            "is not signed by the authority whose name it carries: is --cafile of an earlier one?"
                .into()
        }
        // These have no name in rustls, only in the crate below it.
        E::Other(other) => match format!("{other:?}") {
            text if text.contains("UnsupportedCertVersion") => {
                "is of version 1: issue it again with extensions (openssl x509 -req needs -extfile)"
                    .into()
            }
            text if text.contains("CaUsedAsEndEntity") => {
                "is that of an authority itself: issue the broker one of its own \
                 (basicConstraints CA:FALSE), signed by it"
                    .into()
            }
            text if text.contains("UnsupportedNameConstraint") => {
                "is signed by an authority with name constraints that are not supported".into()
            }
            text => format!("is not accepted: {}", printable(&text, MAX_TEXT)),
        },
        other => format!(
            "is not accepted: {}",
            printable(&format!("{other:?}"), MAX_TEXT)
        ),
    }
}

/// Returns a name in the form of the crate below, `DnsName("h")` or `IpAddress(::1)`, without its
/// wrapping.
fn plain(name: &str) -> String {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    let inner = inner.unwrap_or(name).trim_matches('"');
    format!("'{}'", printable(inner, MAX_TEXT))
}

/// Explains an alert of the broker (RFC 8446, section 6.2).
fn alerted(alert: AlertDescription) -> Option<Error> {
    use AlertDescription as A;
    let ours = |cause: &str| Some(Error::new(Kind::NotAuthorised, cause));
    let theirs = |cause: &str| Some(Error::new(Kind::Unavailable, cause));
    match alert {
        A::CertificateRequired => {
            ours("the broker asks for a client certificate: give --cert and --key")
        }
        A::UnknownCA => ours(
            "the broker does not trust the authority that signed our certificate: it needs that \
             authority in its own cafile",
        ),
        A::CertificateExpired => ours("our certificate has expired: renew it"),
        A::CertificateRevoked => ours("our certificate is revoked"),
        A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown => ours(
            "the broker does not accept our certificate: is it signed by the authority that the \
             broker trusts, and for clients?",
        ),
        A::AccessDenied => ours("the broker does not let our certificate in"),
        // From a broker with TLS 1.2 it often means that a client certificate is missing.
        A::HandshakeFailure => theirs(
            "the broker found nothing in common: it asks for a client certificate (--cert, \
             --key), or its key is not supported, for example P-521: use RSA, P-256, P-384 or \
             Ed25519",
        ),
        A::ProtocolVersion => {
            theirs("the broker speaks an old TLS only: TLS 1.2 or later is needed")
        }
        A::UnrecognisedName => theirs(
            "the broker does not know the name that we asked for: give the one it knows by \
             --tls-server-name",
        ),
        A::NoApplicationProtocol => {
            theirs("the broker knows none of the protocols that --tls-alpn names")
        }
        A::InternalError | A::UserCanceled | A::CloseNotify => None,
        other => theirs(&format!("the broker has ended TLS: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_names_a_way_out() {
        let presented = ["DnsName(\"a.example\")", "IpAddress(::1)"].map(str::to_owned);
        let name = |presented| CertificateError::NotValidForNameContext {
            expected: crate::net::tls::server_name("b.example").expect("name"),
            presented,
        };
        for (error, word) in [
            (CertificateError::UnknownIssuer.into(), "--cafile"),
            (CertificateError::Expired.into(), "renew"),
            (
                name(presented.into()).into(),
                "'a.example', '::1', not for 'b.example'",
            ),
            (name(Vec::new()).into(), "subjectAltName DNS:b.example"),
            (
                TlsError::AlertReceived(AlertDescription::CertificateRequired),
                "--cert",
            ),
            (
                TlsError::AlertReceived(AlertDescription::HandshakeFailure),
                "P-521",
            ),
            (
                TlsError::InvalidMessage(InvalidMessage::InvalidContentType),
                "mqtt://",
            ),
        ] {
            let said = explain(&error, "b.example").expect("certain").to_string();
            assert!(said.contains(word), "{said}");
        }
        assert_eq!(
            explain(
                &TlsError::AlertReceived(AlertDescription::InternalError),
                "h"
            ),
            None
        );
    }
}
