//! The server's side of TLS: certificate, key and, for mTLS, the authority of the clients.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::watched::{self, Watched};

/// The files that TLS needs, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by those that lead to its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority of clients. With it, a client without a certificate of that authority is refused (mTLS).
    pub client_ca: Option<PathBuf>,
}

/// TLS of a server. Its files are read again when they change, for the connections that come after.
pub struct Tls {
    config: Watched<ServerConfig>,
    mutual: bool,
}

impl Tls {
    /// Reads and checks the files; the error names the one that is wrong.
    pub fn load(files: TlsFiles) -> Result<Tls, String> {
        let mutual = files.client_ca.is_some();
        let paths = [Some(files.cert.clone()), Some(files.key.clone()), files.client_ca.clone()].into_iter().flatten().collect();
        Ok(Tls { config: Watched::new(paths, move || read(&files))?, mutual })
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.get()
    }

    /// Whether clients show certificates of their own.
    pub(crate) fn mutual(&self) -> bool {
        self.mutual
    }
}

fn read(files: &TlsFiles) -> Result<ServerConfig, String> {
    // Named, not taken from the process: two libraries that each bring another one would make the default ambiguous.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&watched::read_secret(&files.key)?)
        .map_err(|error| format!("{}: no private key in PEM: {error}", files.key.display()))?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let builder = match &files.client_ca {
        Some(path) => {
            let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong(&error))?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("{} and {} do not go together: {error}", files.cert.display(), files.key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = watched::read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| format!("{}: not PEM: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{}: holds no certificate in PEM (-----BEGIN CERTIFICATE-----)", path.display()));
    }
    Ok(found)
}
