//! A certificate for tests, in files and for clients that trust it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustls::{ClientConfig, RootCertStore};

/// A self-signed certificate of `localhost`. Its files go with it.
pub struct Identity {
    directory: PathBuf,
    #[allow(dead_code, reason = "not every test connects to what it is for")]
    pub client: Arc<ClientConfig>,
}

impl Identity {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("waypost-tls-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let client = write(&directory);
        Self { directory, client }
    }

    /// Another certificate and key in the same files; returns what the clients of the new one trust.
    #[allow(dead_code, reason = "not every test that has a certificate changes it")]
    pub fn renew(&self) -> Arc<ClientConfig> {
        write(&self.directory)
    }

    pub fn cert(&self) -> String {
        self.directory.join("cert.pem").display().to_string()
    }

    pub fn key(&self) -> String {
        self.directory.join("key.pem").display().to_string()
    }
}

fn write(directory: &std::path::Path) -> Arc<ClientConfig> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
