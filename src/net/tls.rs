//! TLS to a broker: rustls with ring, and certificates from PEM files or the system.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, Result};
use crate::net::options::TlsFiles;
use crate::net::tls_failure;

/// Maximum number of files to read in a folder of certificate authorities.
const MAX_CAPATH_FILES: usize = 4096;

/// Settings of TLS, as errors name them.
const CAFILE: &str = "cafile";
const CAPATH: &str = "capath";
const CERT: &str = "cert";
const KEY: &str = "key";

/// Returns the certificates of a PEM file, which an error calls `what`.
///
/// # Errors
/// When it cannot be read or holds none (78).
pub(super) fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let wrong =
        |cause: String| Error::config(format!("read {what} from {}: {cause}", path.display()));
    let list = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(said(e)))?;
    if list.is_empty() {
        return Err(wrong("it holds no certificate in PEM".into()));
    }
    Ok(list)
}

/// Returns the cause of a PEM file that cannot be read.
fn said(error: pem::Error) -> String {
    match error {
        pem::Error::Io(e) => e.to_string(),
        e => e.to_string(),
    }
}

/// Returns the private key of a PEM file.
///
/// # Errors
/// When it cannot be read or holds none that can be used (78).
fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| {
        let shown = path.display();
        let cause = match e {
            pem::Error::NoItemsFound if is_encrypted(path) => format!(
                "it is encrypted, and a service cannot ask for the passphrase: write one \
                 without by openssl pkey -in {shown} -out FILE"
            ),
            pem::Error::NoItemsFound => "it holds no private key in PEM".into(),
            e => said(e),
        };
        Error::config(format!("read our private key from {shown}: {cause}"))
    })
}

/// Returns whether a PEM file holds a key that a passphrase protects (RFC 5958; RFC 1421 for the
/// older form).
fn is_encrypted(path: &Path) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED")
}

/// Returns our certificates and our private key from PEM files.
///
/// # Errors
/// When one is missing or wrong, or they do not fit (78): about `cert` or `key`.
pub(super) fn pair(
    cert: &Path,
    secret: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(cert, "our certificate").map_err(|e| e.about(CERT))?;
    let key = key(secret).map_err(|e| e.about(KEY))?;
    let provider = rustls::crypto::ring::default_provider();
    let fits = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider);
    fits.map_err(|e| wrong_pair(cert, secret, &e).about(CERT))?;
    Ok((chain, key))
}

/// Returns an error about a certificate with its key.
pub(super) fn wrong_pair(cert: &Path, key: &Path, error: &rustls::Error) -> Error {
    let (cert, key) = (cert.display(), key.display());
    let cause = tls_failure::own_files(error);
    Error::config(format!("use certificate {cert} with key {key}: {cause}"))
}

/// Returns the trusted authorities: those of the given files, by default those of the system.
fn roots(files: &TlsFiles) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(cafile) = &files.cafile {
        let list = certificates(cafile, "certificate authorities");
        for certificate in list.map_err(|e| e.about(CAFILE))? {
            roots.add(certificate).map_err(|e| {
                let cafile = cafile.display();
                let cause = format!("use certificate authority from {cafile}: {e}");
                Error::config(cause).about(CAFILE)
            })?;
        }
    }
    if let Some(capath) = &files.capath {
        let wrong = |cause: String| {
            Error::config(format!(
                "read certificate authorities from the folder {}: {cause}",
                capath.display()
            ))
            .about(CAPATH)
        };
        let entries = fs::read_dir(capath).map_err(|e| wrong(e.to_string()))?;
        let before = roots.len();
        for entry in entries.take(MAX_CAPATH_FILES).flatten() {
            // Such folders hold other files too: links by hash, a README, keys.
            let list = CertificateDer::pem_file_iter(entry.path());
            roots.add_parsable_certificates(list.into_iter().flatten().flatten());
        }
        if roots.len() == before {
            return Err(wrong("no file in it holds a certificate in PEM".into()));
        }
    }
    if roots.is_empty() {
        // The store of a system may hold unusable certificates, which are skipped.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(Error::config(
            "find the system's certificate authorities: none are installed; use --cafile",
        ));
    }
    Ok(roots)
}

/// Returns the configuration of our side of the connection.
///
/// # Errors
/// When a file is missing or wrong, or certificate and key do not fit (78): about `cafile`, `capath`, `cert` or
/// `key`.
pub fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::bug(format!("set up TLS: {e}")))?
        .with_root_certificates(roots(files)?);
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((cert, secret)) => {
            let (chain, key) = pair(cert, secret)?;
            let built = builder.with_client_auth_cert(chain, key);
            built.map_err(|e| wrong_pair(cert, secret, &e).about(CERT))?
        }
    };
    config.alpn_protocols = files.alpn.iter().map(|name| name.clone().into()).collect();
    Ok(Arc::new(config))
}

/// Returns the name that the certificate of the broker must have: `host`, without a scope or a
/// final dot.
///
/// # Errors
/// A text for the user.
pub fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    let host = host.split('%').next().unwrap_or(host);
    let name = ServerName::try_from(host.strip_suffix('.').unwrap_or(host).to_owned());
    name.map_err(|_| format!("'{host}' is not a name that a certificate can have"))
}

/// Starts TLS over `tcp`, with a broker that must prove to be `name`.
///
/// # Errors
/// The failure; it contains a [`rustls::Error`] if TLS failed.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: S,
) -> io::Result<TlsStream<S>> {
    TlsConnector::from(config).connect(name, tcp).await
}
