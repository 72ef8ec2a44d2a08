//! TLS towards a TURN server, by rustls. Bytes go in and out; but for the handshake, nothing here reads or writes a socket.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::server::ServerIdentity;

/// A session that is past its handshake: the server is who it has to be.
pub(super) struct TlsSession(Box<ClientConnection>);

impl TlsSession {
    /// Shakes hands, and verifies the server's certificate. Takes at most about `patience`.
    pub(super) fn open(
        stream: &mut TcpStream,
        identity: &ServerIdentity,
        patience: Duration,
    ) -> io::Result<Self> {
        let config = Arc::new(config(&identity.roots_pem)?);
        let name = ServerName::try_from(identity.name.clone()).map_err(|_| {
            invalid("the TURN server's name is no host name and no IP address; correct it")
        })?;
        let connection = ClientConnection::new(config, name).map_err(refused)?;
        let mut session = Self(Box::new(connection));
        let deadline = Instant::now() + patience;
        let mut bytes = [0; 4_096];
        while session.0.is_handshaking() {
            stream.write_all(&session.pending()?)?;
            if !session.0.is_handshaking() {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the TURN server does not finish the TLS handshake; check its address and port",
                ));
            }
            stream.set_read_timeout(Some(left))?;
            let len = stream.read(&mut bytes)?;
            if len == 0 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            // What the server says beyond the handshake, before it is asked anything, means nothing.
            let answer = session.unseal(&bytes[..len], &mut Vec::new());
            if answer.is_err() {
                // The alert that says why.
                let _ = stream.write_all(&session.pending()?);
            }
            stream.write_all(&answer?)?;
        }
        stream.write_all(&session.pending()?)?;
        Ok(session)
    }

    /// What is to be written for the server to read `plain`.
    pub(super) fn seal(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        self.0.writer().write_all(plain)?;
        self.pending()
    }

    /// Reads what came, appends what it says to `plain`, and returns what is to be written in answer, if anything.
    pub(super) fn unseal(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> io::Result<Vec<u8>> {
        while !bytes.is_empty() {
            self.0.read_tls(&mut bytes)?;
            let state = self.0.process_new_packets().map_err(refused)?;
            let len = state.plaintext_bytes_to_read();
            let begins = plain.len();
            plain.resize(begins + len, 0);
            self.0.reader().read_exact(&mut plain[begins..])?;
        }
        self.pending()
    }

    fn pending(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut bytes)?;
        }
        Ok(bytes)
    }
}

fn config(roots_pem: &[u8]) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots_pem) {
        let root = root.map_err(|_| invalid("the roots for TURN over TLS are no PEM"))?;
        roots.add(root).map_err(refused)?;
    }
    if roots.is_empty() {
        return Err(invalid(
            "there is no root to verify the TURN server by; give certificates in PEM",
        ));
    }
    Ok(
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_root_certificates(roots)
            .with_no_client_auth(),
    )
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn refused(error: rustls::Error) -> io::Error {
    let text = format!(
        "TLS with the TURN server failed: {error}; check its name and the roots that were given"
    );
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}
