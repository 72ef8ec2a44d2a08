//! HTTP for operators, matchmakers and their machines: status page, metrics, probes and `/v1`.
//!
//! It is served by the control thread and never on a public port of its own accord. Every connection
//! carries one request and has a deadline, so that nobody can hold one open. Errors are JSON with a
//! sentence.

mod rendezvous;
mod routes;
mod turn_credentials;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, RwLock},
    time::Duration,
};

use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::sync::{Notify, Semaphore};

pub use rendezvous::{
    APPLICATION_BYTES_MAX, AdminError, CreateSession, CreatedSession, METADATA_BYTES_MAX,
    NAME_BYTES_MAX, PAGE_SESSIONS_MAX, PASSWORD_BYTES_MAX, Reconfiguration, Rendezvous,
    SESSION_MEMBERS, SessionPage, SessionQuery, SessionSummary,
};

pub use turn_credentials::{TurnCredential, TurnIssuer};

use super::{metrics::Metrics, secret::Secret};

/// From accepting a connection to its last byte.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(15);
/// How long the shards may take to answer.
const SHARDS_DEADLINE: Duration = Duration::from_secs(5);
/// Connections at one time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// Calls into the shards at one time; more are told to come back.
const CALLS_MAX: usize = 16;
/// Largest request body, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long to wait when the process has no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the routes work with.
pub(super) struct Admin {
    pub(super) metrics: Arc<Metrics>,
    pub(super) rendezvous: Arc<dyn Rendezvous>,
    /// Bearer token of `/v1`; none means none is needed.
    pub(super) token: RwLock<Option<Secret>>,
    /// Rung when somebody asks for a drain.
    pub(super) drain_asked: Notify,
    /// What is listened on, as printed at start.
    pub(super) listeners: Vec<String>,
    /// Makes credentials for browsers.
    pub(super) turn: TurnIssuer,
    /// Whether noray's own metrics are shown beside ours.
    pub(super) shows_noray: bool,
    calls: Arc<Semaphore>,
}

impl Admin {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        rendezvous: Arc<dyn Rendezvous>,
        token: Option<Secret>,
        listeners: Vec<String>,
        turn: TurnIssuer,
        shows_noray: bool,
    ) -> Self {
        Self {
            metrics,
            rendezvous,
            token: RwLock::new(token),
            drain_asked: Notify::new(),
            listeners,
            turn,
            shows_noray,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }
}

/// Binds the admin port, so that an address in use is known before anything else starts.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts connections until it is dropped.
pub(super) async fn serve(listener: tokio::net::TcpListener, admin: Arc<Admin>) {
    serve_router(listener, routes::router(admin)).await;
}

/// As [`serve`], for other routes.
pub(super) async fn serve_router(listener: tokio::net::TcpListener, router: axum::Router) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "the admin port accepted nothing");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let connection = hyper::server::conn::http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A caller that is late or breaks off harms only itself.
            let _ = tokio::time::timeout(CONNECTION_DEADLINE, connection).await;
        });
    }
}

#[cfg(test)]
mod tests;
