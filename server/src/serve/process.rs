//! The whole process, as the command line says: a server with log, signals and admin port, or one of the answers that need no
//! server. It opens no socket of the shards.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use super::{DIED, Server, relay};
use crate::control::admin::TurnCredential;
use crate::control::config::{Config, ConfigError, Invocation, Sources};
use crate::control::secret;
use crate::control::successor::Successor;
use crate::control::thread::{Control, Ending, bind_admin, bind_noray_http};
use crate::control::{doctor, logging, signals};
use crate::mmsg::sys::huge_pages_where_advised;
use crate::ring;

/// Runs the server as the command line says, until it is told to stop. Returns the exit code.
#[must_use]
pub fn run(sources: Sources) -> u8 {
    match try_run(sources) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            crate::control::config::EXIT_CODE
        }
    }
}

fn try_run(sources: Sources) -> Result<(), ConfigError> {
    let config = match sources.invocation()? {
        Invocation::Print(text) => {
            print!("{text}");
            return Ok(());
        }
        Invocation::Doctor(config) => {
            let ring = ring::probe().map_err(|error| error.to_string());
            print!("{}", doctor::report(&config, ring));
            return Ok(());
        }
        Invocation::GenCredential(config, user, valid_secs) => {
            print!("{}", generated_credential(&config, &user, valid_secs)?);
            return Ok(());
        }
        Invocation::Serve(config) => *config,
    };
    let log_level = logging::start(config.log_format, config.log_level);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    huge_pages_where_advised();
    let secret = secret::ServerSecret::load_or_create(&config)?;
    if let secret::SecretSource::MemoryOnly(why) = &secret.source {
        tracing::warn!(
            "the server's secret cannot be kept ({why}): tickets and codes end with this process; --state-dir names a place for it"
        );
    }
    // Before the shards start, so that their threads inherit the handlers and ports in use end the start.
    let signals = signals::listen().map_err(|error| {
        ConfigError::new(
            format!("signals cannot be handled: {error}"),
            "look at the limits of this process",
        )
    })?;
    let admin = bind_admin(&config)?;
    let noray_http = bind_noray_http(&config)?;
    let server = Server::start(&config, &secret.secret)?;
    for warning in &server.warnings {
        tracing::warn!("{warning}");
    }
    let mut lines = server.listeners.lines();
    if let Some(address) = admin.as_ref().and_then(|admin| admin.local_addr().ok()) {
        lines.push(format!("admin {address}"));
    }
    if let Some(address) = noray_http.as_ref().and_then(|http| http.local_addr().ok()) {
        lines.push(format!("noray-http {address}"));
    }
    announce(&lines, server.main_addr());
    let turn_urls = relay::turn_urls(&config, &lines);
    let successor = Successor::of(&sources.arguments);
    let control = Control {
        config,
        successor: successor.clone(),
        sources,
        metrics: Arc::clone(server.metrics()),
        rendezvous: server.rendezvous(),
        log_level,
        signals,
        admin,
        noray_http,
        listeners: lines,
        turn_urls,
    };
    let ended = control.start().map(JoinHandle::join);
    server.stop();
    match ended {
        Ok(Ok(Ending::HandOver)) => {
            let error = successor.replace();
            tracing::error!(%error, "the new binary, which was sound before, cannot be started");
            std::process::exit(DIED)
        }
        Ok(_) => Ok(()),
        Err(error) => Err(ConfigError::new(
            format!("the control thread cannot be started: {error}"),
            "raise the limits of processes and open files",
        )),
    }
}

/// A time-limited credential as two lines, under the first secret, which is the one to sign with.
fn generated_credential(
    config: &Config,
    user: &str,
    valid_secs: u64,
) -> Result<String, ConfigError> {
    let secret = config.auth_secrets.first().ok_or_else(|| {
        ConfigError::new(
            "there is no secret to make a credential with",
            "give the server's --auth-secret-file",
        )
    })?;
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let credential = TurnCredential::new(secret, user, now.as_secs() + valid_secs);
    Ok(format!(
        "username {}\npassword {}\n",
        credential.username, credential.credential
    ))
}

/// Says where the server listens, and two lines for somebody who has just started their first one. Whether anybody reads
/// it is no reason to stop.
fn announce(lines: &[String], address: SocketAddr) {
    let mut target = address;
    if target.ip().is_unspecified() {
        target.set_ip(match target {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let listening: String = lines
        .iter()
        .map(|line| format!("listening {line}\n"))
        .collect();
    let text = format!(
        "{listening}try: cargo run --release -p waypost-client --example chat -- host --server {target}\n\
         try: cargo run --release -p waypost-loadgen -- --target {target}\n"
    );
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
