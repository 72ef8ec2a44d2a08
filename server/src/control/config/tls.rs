//! The options of TLS: addresses, and the files of certificate and key, read and held against each other.

use std::{net::SocketAddr, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::NoServerSessionStorage,
};

use super::{ConfigError, Reader};

impl Reader<'_> {
    pub(super) fn tls_listen(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        self.addresses("tls-listen")
    }

    /// Certificate and key, which have to be there if TLS has an address.
    pub(super) fn tls(&self) -> Result<Option<Arc<ServerConfig>>, ConfigError> {
        let (cert, key) = (self.optional("tls-cert")?, self.optional("tls-key")?);
        let has_address = !self.0.get("tls-listen").values.is_empty();
        let absent = |name: &str| {
            let remedy = "give --tls-cert and --tls-key, or neither and no --tls-listen";
            Err(ConfigError::new(
                format!("TLS is wanted, but {name} is not given"),
                remedy,
            ))
        };
        match (cert, key) {
            (Some(cert), Some(key)) => self.tls_identity(cert, key).map(Some),
            (None, None) if !has_address => Ok(None),
            (None, _) => absent("tls-cert"),
            (_, None) => absent("tls-key"),
        }
    }

    fn tls_identity(&self, cert: &str, key: &str) -> Result<Arc<ServerConfig>, ConfigError> {
        const CERT_REMEDY: &str =
            "name a PEM file with the certificate first, then those that lead to its root";
        const KEY_REMEDY: &str =
            "name a PEM file with the private key of the certificate in --tls-cert, not encrypted";
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(Path::new(cert)).and_then(Iterator::collect);
        let chain =
            chain.map_err(|error| self.bad("tls-cert", cert, &reason(error), CERT_REMEDY))?;
        if chain.is_empty() {
            return Err(self.bad("tls-cert", cert, "holds no certificate", CERT_REMEDY));
        }
        let private = PrivateKeyDer::from_pem_file(Path::new(key))
            .map_err(|error| self.bad("tls-key", key, &reason(error), KEY_REMEDY))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| builder.with_single_cert(chain, private))
            .map_err(|error| {
                let reason = format!("does not go with tls-cert `{cert}` ({error})");
                self.bad("tls-key", key, &reason, KEY_REMEDY)
            })?;
        // Nothing of a session is kept once it is over: what is shared by all shards would have to be locked.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn reason(error: pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot be read ({error})"),
        pem::Error::NoItemsFound => "holds nothing of the kind".to_owned(),
        other => format!("is not PEM ({other:?})"),
    }
}
