//! How a connection comes about: URL, TLS, and the token that goes with every call.

use std::fmt;
use std::time::Duration;

use sira_wire::DEFAULT_PORT;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::line::Lines;
use crate::{ClientError, http2};

/// How to connect, beyond the URL. The default is what a server on the same machine needs: nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Sent with every call. Over a `grpc://` URL it can be read by everybody on the way.
    pub token: Option<String>,
    /// Certificates of the authorities that are trusted, in PEM. Default: the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// The client's certificate, in PEM, where the server asks for one; its key is then needed too.
    pub cert_pem: Option<Vec<u8>>,
    /// The key of the client's certificate, in PEM.
    pub key_pem: Option<Vec<u8>>,
    /// The name that the server's certificate must have. Default: the URL's host.
    pub domain: Option<String>,
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Token and key are secrets, the rest is long.
        let ConnectOptions { token, ca_pem, cert_pem, key_pem, domain } = self;
        let given = [("token", token.is_some()), ("ca", ca_pem.is_some()), ("cert", cert_pem.is_some()), ("key", key_pem.is_some())];
        let given: Vec<_> = given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
        f.debug_struct("ConnectOptions").field("given", &given).field("domain", domain).finish()
    }
}

/// A channel whose calls carry the token.
pub(crate) type Authorized = InterceptedService<Channel, Bearer>;

/// Puts the token, if there is one, before each call.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn new(token: Option<&str>) -> Result<Bearer, ClientError> {
        let value = |token: &str| {
            let value = bearer(token).parse::<MetadataValue<Ascii>>();
            let mut value =
                value.map_err(|_| ClientError::BadCredentials("a token is made of letters, digits and signs of ASCII".into()))?;
            value.set_sensitive(true);
            Ok(value)
        };
        token.map(value).transpose().map(Bearer)
    }
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The value of the `authorization` header, where the options have a token.
pub(crate) fn authorization(options: &ConnectOptions) -> Result<Option<String>, ClientError> {
    Bearer::new(options.token.as_deref())?;
    Ok(options.token.as_deref().map(bearer))
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Connects, and waits until the connection is there.
pub(crate) async fn open(url: &str, options: &ConnectOptions) -> Result<Authorized, ClientError> {
    let (endpoint, bearer) = endpoint(url, options)?;
    let channel = endpoint.connect().await.map_err(|error| match ClientError::from(error) {
        ClientError::Transport { reason, .. } => ClientError::Transport { context: format!("no connection to {url}"), reason },
        other => other,
    })?;
    Ok(InterceptedService::new(channel, bearer))
}

/// Connects with the first call.
pub(crate) fn lazy(url: &str, options: &ConnectOptions) -> Result<Authorized, ClientError> {
    let (endpoint, bearer) = endpoint(url, options)?;
    Ok(InterceptedService::new(endpoint.connect_lazy(), bearer))
}

/// The connection over which memory is passed, where the URL is of a Unix socket.
pub(crate) fn lines(url: &str, options: &ConnectOptions) -> Option<Lines> {
    let path = socket_path(url)?;
    Some(Lines::new(path.into(), options.token.clone()))
}

/// The path of a Unix socket, where the URL is of one.
pub(crate) fn socket_path(url: &str) -> Option<&str> {
    let (scheme, path) = url.split_once("://")?;
    (matches!(scheme, "grpc+unix" | "unix") && path.starts_with('/')).then_some(path)
}

fn endpoint(url: &str, options: &ConnectOptions) -> Result<(Endpoint, Bearer), ClientError> {
    let (http, secure) = http_url(url)?;
    let bad = |error: tonic::transport::Error| ClientError::BadUrl { url: url.to_owned(), reason: error.to_string() };
    let mut endpoint = Endpoint::from_shared(http)
        .map_err(bad)?
        .connect_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
        // Room for a few messages on the way, where HTTP/2's own 64 KiB would wait for each round trip.
        .initial_stream_window_size(http2::SHARED_WINDOW)
        .initial_connection_window_size(2 * http2::SHARED_WINDOW)
        .max_frame_size(http2::FRAME);
    let bearer = Bearer::new(options.token.as_deref())?;
    let tls = tls(options)?;
    if secure {
        endpoint = endpoint.tls_config(tls).map_err(|error| ClientError::BadCredentials(crate::error::innermost(&error)))?;
    } else if options.ca_pem.is_some() || options.cert_pem.is_some() {
        return Err(ClientError::BadUrl { url: url.to_owned(), reason: "certificates need TLS: grpc+tls://host:port".into() });
    }
    Ok((endpoint, bearer))
}

fn tls(options: &ConnectOptions) -> Result<ClientTlsConfig, ClientError> {
    let mut tls = ClientTlsConfig::new().timeout(Duration::from_secs(10));
    tls = match &options.ca_pem {
        // Without this, a file of something else would be an authority of nobody, and every server would look untrusted.
        Some(pem) if !pem.windows(27).any(|part| part == b"-----BEGIN CERTIFICATE-----") => {
            return Err(ClientError::BadCredentials("the authority's file holds no certificate in PEM".into()));
        }
        Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
        None => tls.with_native_roots(),
    };
    if let Some(domain) = &options.domain {
        tls = tls.domain_name(domain);
    }
    match (&options.cert_pem, &options.key_pem) {
        (None, None) => Ok(tls),
        (Some(cert), Some(key)) => Ok(tls.identity(Identity::from_pem(cert, key))),
        _ => Err(ClientError::BadCredentials("a certificate and its key go together; one of them is missing".into())),
    }
}

/// `host:port` of a URL, and whether it means TLS.
pub(crate) fn authority(url: &str) -> Result<(String, bool), ClientError> {
    let (http, secure) = http_url(url)?;
    let (_, authority) = http.split_once("://").unwrap_or_default();
    Ok((authority.to_owned(), secure))
}

/// The URL as the HTTP/2 layer takes it, and whether it means TLS.
fn http_url(url: &str) -> Result<(String, bool), ClientError> {
    let bad = |reason: &str| Err(ClientError::BadUrl { url: url.to_owned(), reason: reason.to_owned() });
    let (scheme, rest) = url.split_once("://").unwrap_or(("grpc", url));
    let secure = match scheme {
        "grpc" | "grpc+tcp" | "http" => false,
        "https" | "grpc+tls" | "grpcs" => true,
        "grpc+unix" | "unix" if rest.starts_with('/') => return Ok((format!("unix://{rest}"), false)),
        "grpc+unix" | "unix" => return bad("the URL of a Unix socket is grpc+unix:///path, of an absolute path"),
        _ => return bad("a server's URL is grpc://host:port, with TLS grpc+tls://host:port, or of a Unix socket grpc+unix:///path"),
    };
    let authority = rest.trim_end_matches('/');
    if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
        return bad("a server's URL is grpc://host:port, with nothing after it");
    }
    let scheme = if secure { "https" } else { "http" };
    let after_host = authority.rsplit(']').next().unwrap_or(authority);
    let url = if after_host.contains(':') { format!("{scheme}://{authority}") } else { format!("{scheme}://{authority}:{DEFAULT_PORT}") };
    Ok((url, secure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_in_every_spelling_and_refused_with_a_reason() {
        for (url, http) in [
            ("grpc://127.0.0.1:9095", "http://127.0.0.1:9095"),
            ("grpc+tcp://localhost", "http://localhost:9095"),
            ("http://host:1/", "http://host:1"),
            ("host:7", "http://host:7"),
            ("grpc://[::1]", "http://[::1]:9095"),
            ("grpc://[::1]:5", "http://[::1]:5"),
            ("grpc+tls://host", "https://host:9095"),
            ("grpcs://host:1", "https://host:1"),
            ("https://[::1]:5/", "https://[::1]:5"),
            ("grpc+unix:///run/sira.sock", "unix:///run/sira.sock"),
            ("unix:///run/a b", "unix:///run/a b"),
        ] {
            assert_eq!(http_url(url).unwrap(), (http.to_owned(), http.starts_with("https")), "{url}");
        }
        for url in ["ftp://host", "grpc://", "grpc://host/path", "grpc+tls://me@host", "unix://host/path", "grpc+unix://"] {
            assert!(http_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn credentials_that_cannot_work_are_refused_and_never_shown() {
        let secret = "a-secret\nof-two-lines";
        let error = Bearer::new(Some(secret)).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        let options = ConnectOptions { token: Some("a-secret".into()), key_pem: Some(b"a-secret".to_vec()), ..ConnectOptions::default() };
        assert!(!format!("{options:?}").contains("secret") && format!("{options:?}").contains("token"), "{options:?}");
        assert!(!format!("{:?}", Bearer::new(Some("a-secret")).unwrap()).contains("secret"));
        assert!(tls(&options).unwrap_err().to_string().contains("go together"));
        let options = ConnectOptions { ca_pem: Some(b"no certificate".to_vec()), ..ConnectOptions::default() };
        assert!(tls(&options).unwrap_err().to_string().contains("no certificate in PEM"));
    }
}
