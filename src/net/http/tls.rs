//! TLS of a server: TLS 1.2 and later, over rustls with ring.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, Result};
use crate::model::certificate;
use crate::net::tls::{certificates, pair, wrong_pair};

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
pub struct Tls {
    pub(super) config: Arc<ServerConfig>,
    not_after: Option<i64>,
}

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
                    let cause = format!("use certificate authority from {shown}: {cause}");
                    Error::config(cause).about("tls-client-ca")
                };
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, "certificate authorities")
                    .map_err(|e| e.about("tls-client-ca"))?
                {
                    roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder
                    .with_client_cert_verifier(verifier.build().map_err(|e| wrong(e.to_string()))?)
            }
        };
        let pair = pair(&files.cert, &files.key);
        let (chain, secret) = pair.map_err(|e| e.about_prefixed("tls-"))?;
        let not_after = chain.first().and_then(|own| certificate::not_after(own));
        let built = builder.with_single_cert(chain, secret);
        let mut config = built.map_err(|e| wrong_pair(&files.cert, &files.key, &e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            not_after,
        })
    }

    /// Returns the second since 1970 after which our certificate is not valid, if it can be read.
    #[must_use]
    pub const fn not_after(&self) -> Option<i64> {
        self.not_after
    }
}
