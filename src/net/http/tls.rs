//! TLS of a server: TLS 1.2 and later, over rustls with ring.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, Result};
use crate::net::tls::{certificates, key};

/// Files of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Our certificate, and those up to the authority, PEM.
    pub cert: PathBuf,
    /// Our private key, PEM.
    pub key: PathBuf,
    /// Certificate authorities of clients, PEM; `None` if clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// TLS with an [`Identity`].
#[derive(Debug, Clone)]
pub struct Tls(pub(super) Arc<ServerConfig>);

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one is missing or wrong, or certificate and key do not fit (78).
    pub fn read(files: &Identity) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::bug(format!("set up TLS: {e}")))?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let wrong = |cause: String| {
                    let shown = path.display();
                    Error::config(format!("use certificate authority from {shown}: {cause}"))
                };
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, "certificate authorities")? {
                    roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder
                    .with_client_cert_verifier(verifier.build().map_err(|e| wrong(e.to_string()))?)
            }
        };
        let chain = certificates(&files.cert, "our certificate")?;
        let secret = key(&files.key)?;
        let mut config = builder.with_single_cert(chain, secret).map_err(|e| {
            let (cert, key) = (files.cert.display(), files.key.display());
            Error::config(format!("use certificate {cert} with key {key}: {e}"))
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}
