//! The control thread: signals, the admin port, the drain, reloads, the service manager. It decides
//! when the process ends; the shards are started and stopped by the caller.

use std::{
    io,
    net::TcpListener,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{MissedTickBehavior, interval},
};

use super::{
    admin::{self, Admin, Reconfiguration, Rendezvous, TurnIssuer},
    config::{Config, ConfigError, Sources},
    counters::DRAINED,
    logging::LogLevel,
    metrics::Metrics,
    noray_metrics,
    signals::Request,
    successor::Successor,
    systemd,
};

/// How often the thread looks at the shards.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What becomes of the process when the control thread has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It stops.
    Stop,
    /// It becomes [`Control::successor`].
    HandOver,
}

/// What the control thread works with.
pub struct Control {
    /// What the server was told.
    pub config: Config,
    /// Whom the process may be handed over to.
    pub successor: Successor,
    /// Where it was told, for reloads.
    pub sources: Sources,
    /// The numbers of all shards.
    pub metrics: Arc<Metrics>,
    /// The way to the shards.
    pub rendezvous: Arc<dyn Rendezvous>,
    /// The level of the log, for reloads.
    pub log_level: LogLevel,
    /// From [`super::signals::listen`].
    pub signals: UnboundedReceiver<Request>,
    /// From [`bind_admin`]; none when the admin port is off.
    pub admin: Option<TcpListener>,
    /// From [`bind_noray_http`]; none when it is off.
    pub noray_http: Option<TcpListener>,
    /// What the shards listen on, as printed at start, for the status page.
    pub listeners: Vec<String>,
    /// The URLs of TURN here, for browsers.
    pub turn_urls: Vec<String>,
}

/// Binds the admin port of `config`, unless it is off. To be done before the shards start, so that an
/// address in use ends the start. Its real address is the listener's `local_addr`.
pub fn bind_admin(config: &Config) -> Result<Option<TcpListener>, ConfigError> {
    let Some(address) = config.admin else {
        return Ok(None);
    };
    let bound = admin::bind(address);
    bound
        .map(Some)
        .map_err(|error| ConfigError::bind("the admin port", address, "--admin", &error))
}

/// Binds the port of noray's metrics, if `config` has one. To be done before the shards start, too.
pub fn bind_noray_http(config: &Config) -> Result<Option<TcpListener>, ConfigError> {
    let Some(address) = config.noray.as_ref().and_then(|noray| noray.http) else {
        return Ok(None);
    };
    let bound = admin::bind(address);
    bound
        .map(Some)
        .map_err(|error| ConfigError::bind("TCP", address, "--noray-http", &error))
}

impl Control {
    /// Starts the thread. It ends, and with it the handle joins, when the server shall stop: the
    /// drain is over, or nobody wants to wait for it.
    pub fn start(self) -> io::Result<JoinHandle<Ending>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(4)
            .thread_name("admin-call")
            .build()?;
        let inside = runtime.enter();
        let taken = |listener: Option<TcpListener>| {
            let taken = listener.map(tokio::net::TcpListener::from_std);
            taken.transpose()
        };
        let listener = taken(self.admin)?;
        let noray_http = taken(self.noray_http)?;
        drop(inside);
        let admin = Admin::new(
            self.metrics,
            self.rendezvous,
            self.config.admin_token.clone(),
            self.listeners,
            TurnIssuer::new(self.config.auth_secrets.clone(), self.turn_urls),
            self.config.noray.is_some(),
        );
        let thread = Running {
            admin: Arc::new(admin),
            config: self.config,
            successor: self.successor,
            sources: self.sources,
            log_level: self.log_level,
            ready_sent: false,
            stop_at: None,
            ending: Ending::Stop,
        };
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let ending = runtime.block_on(thread.run(listener, noray_http, self.signals));
                // A call that still waits for shards must not hold up the end.
                runtime.shutdown_background();
                ending
            })
    }
}

struct Running {
    admin: Arc<Admin>,
    config: Config,
    successor: Successor,
    sources: Sources,
    log_level: LogLevel,
    ready_sent: bool,
    /// When a drain that ends the process is over at the latest.
    stop_at: Option<Instant>,
    /// What becomes of the process then.
    ending: Ending,
}

impl Running {
    async fn run(
        mut self,
        listener: Option<tokio::net::TcpListener>,
        noray_http: Option<tokio::net::TcpListener>,
        mut signals: UnboundedReceiver<Request>,
    ) -> Ending {
        if let Some(listener) = listener {
            tokio::spawn(admin::serve(listener, Arc::clone(&self.admin)));
        }
        if let Some(listener) = noray_http {
            let router = noray_metrics::router(Arc::clone(&self.admin.metrics));
            tokio::spawn(admin::serve_router(listener, router));
        }
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut busy_sampled = Instant::now();
        let mut watchdog_sent = Instant::now();
        let watchdog_interval = systemd::watchdog_interval();
        while !self.is_over() {
            tokio::select! {
                _ = look.tick() => {}
                () = self.admin.drain_asked.notified() => self.drain(),
                request = signals.recv() => match request {
                    Some(Request::Drain) => self.drain_and_stop(),
                    Some(Request::StopNow) | None => return Ending::Stop,
                    Some(Request::Reload) => self.reload(),
                    Some(Request::HandOver) => self.hand_over().await,
                },
            }
            let now = Instant::now();
            if now - busy_sampled >= Duration::from_secs(1) {
                self.admin.metrics.sample_busy(now);
                busy_sampled = now;
            }
            if !self.ready_sent && self.admin.metrics.all_bound() {
                systemd::ready("serving");
                self.ready_sent = true;
            }
            if watchdog_interval.is_some_and(|interval| now - watchdog_sent >= interval)
                && self.admin.metrics.all_ticking()
            {
                systemd::watchdog();
                watchdog_sent = now;
            }
        }
        self.ending
    }

    fn is_over(&self) -> bool {
        let empty = || {
            let totals = DRAINED.map(|name| self.admin.metrics.total(name));
            totals == [0; DRAINED.len()]
        };
        self.stop_at
            .is_some_and(|stop_at| Instant::now() >= stop_at || empty())
    }

    fn drain(&self) {
        tracing::info!("draining: no new sessions are taken");
        self.admin.metrics.set_draining();
        self.admin.rendezvous.drain();
    }

    fn drain_and_stop(&mut self) {
        self.drain_and_end(Ending::Stop);
        systemd::stopping("draining");
    }

    fn drain_and_end(&mut self, ending: Ending) {
        self.drain();
        self.stop_at = Some(Instant::now() + Duration::from_secs(self.config.drain_secs.into()));
        self.ending = ending;
    }

    /// Drains for a new binary, if there is one that can be used; when asked again, waits no longer.
    async fn hand_over(&mut self) {
        if self.ending == Ending::HandOver {
            self.stop_at = Some(Instant::now());
            return;
        }
        match self.successor.check().await {
            Ok(()) => self.drain_and_end(Ending::HandOver),
            Err(reason) => tracing::error!(reason, "there is no handing over to the new binary"),
        }
    }

    /// Takes over what can change while serving. A bad configuration changes nothing.
    fn reload(&mut self) {
        let new = match self.sources.reload() {
            Ok(new) => new,
            Err(error) => {
                self.admin.metrics.set_reload(false);
                tracing::error!(%error, "the configuration is as it was, the new one cannot be used");
                return;
            }
        };
        let fixed = |option: &&super::config::OptionSpec| !option.reloads;
        for option in self.config.settings.changed(&new.settings).filter(fixed) {
            tracing::warn!(option = option.name, "this change needs a restart");
        }
        if new.admin_token.is_none() && self.config.admin.is_some_and(|at| !at.ip().is_loopback()) {
            self.admin.metrics.set_reload(false);
            tracing::error!(
                "the configuration is as it was: the admin port can be reached from other hosts and needs a token"
            );
            return;
        }
        if let Ok(mut token) = self.admin.token.write() {
            token.clone_from(&new.admin_token);
        }
        self.admin.turn.set_secrets(new.auth_secrets.clone());
        self.log_level.set(new.log_level);
        self.admin.rendezvous.reconfigure(Reconfiguration {
            open_rendezvous: new.open_rendezvous,
            auth_secrets: new.auth_secrets,
            tls: new.tls,
        });
        self.admin.metrics.set_reload(true);
        tracing::info!("the configuration was taken over");
    }
}
