//! TLS towards a broker: rustls with ring, certificates from PEM files or the system.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, Result};
use crate::net::options::TlsFiles;

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let wrong =
        |cause: String| Error::config(format!("read {what} from {}: {cause}", path.display()));
    let list = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(e.to_string()))?;
    if list.is_empty() {
        return Err(wrong("it holds no certificate in PEM".into()));
    }
    Ok(list)
}

/// The configuration of our side of the connection.
///
/// # Errors
/// When a file is missing or wrong, or certificate and key do not belong together (78).
pub fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    if let Some(cafile) = &files.cafile {
        for certificate in certificates(cafile, "certificate authorities")? {
            roots.add(certificate).map_err(|e| {
                Error::config(format!(
                    "use certificate authority from {}: {e}",
                    cafile.display()
                ))
            })?;
        }
    } else {
        // A system's store may hold odd certificates; one bad apple must not stop us.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(Error::config(
                "find the system's certificate authorities: none are installed; use --cafile",
            ));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::bug(format!("set up TLS: {e}")))?
        .with_root_certificates(roots);
    let config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert, "our certificate")?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| {
                Error::config(format!("read our private key from {}: {e}", key.display()))
            })?;
            builder.with_client_auth_cert(chain, secret).map_err(|e| {
                Error::config(format!(
                    "use certificate {} with key {}: {e}",
                    cert.display(),
                    key.display()
                ))
            })?
        }
    };
    Ok(Arc::new(config))
}
