//! TLS of the connections for bytes, with the same credentials and authorities as the shared one.

use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::link::Link;
use crate::connect::ConnectOptions;
use crate::error::innermost;
use crate::{ClientError, http2::connection};

/// Whom to expect, and how to make sure.
#[derive(Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Reads the options; `host` is the one of the URL.
    pub fn new(host: &str, options: &ConnectOptions) -> Result<Tls, ClientError> {
        let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(bad)?;
        let builder = builder.with_root_certificates(roots(options)?);
        let mut config = match (&options.cert_pem, &options.key_pem) {
            (Some(cert), Some(key)) => {
                let key = PrivateKeyDer::from_pem_slice(key).map_err(bad)?;
                builder.with_client_auth_cert(certificates(cert)?, key).map_err(bad)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols.push(b"h2".to_vec());
        let name = options.domain.as_deref().unwrap_or(host).trim_matches(['[', ']']);
        Ok(Tls { connector: TlsConnector::from(Arc::new(config)), name: ServerName::try_from(name.to_owned()).map_err(bad)? })
    }

    /// Greets the server, and makes sure that it is the one.
    pub async fn secure(&self, link: impl Link + 'static) -> Result<Box<dyn Link>, ClientError> {
        let stream = self.connector.connect(self.name.clone(), link).await.map_err(connection::broken)?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(Box::new(stream)),
            _ => Err(ClientError::protocol("whoever listens there does not speak HTTP/2")),
        }
    }
}

fn roots(options: &ConnectOptions) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    match &options.ca_pem {
        Some(pem) => roots.add_parsable_certificates(certificates(pem)?),
        None => roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    };
    match roots.is_empty() {
        false => Ok(roots),
        true => Err(ClientError::BadCredentials("no certificate of an authority that could be trusted".into())),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(bad)
}

fn bad(error: impl std::error::Error) -> ClientError {
    ClientError::BadCredentials(innermost(&error))
}
