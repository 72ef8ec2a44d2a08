//! A run from its plan to its report: the server if none is named, the threads, the moment when the load begins, and the
//! sum of what they counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use clap::ValueEnum;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use waypost_server::mmsg::Mmsg;
use waypost_server::packet_io::{IoConfig, MAX_SOCKETS, PacketIo, SetupError};
use waypost_server::ring::{self, Ring};

use crate::cli::{Arrivals, IoChoice, Plan, Storm};
use crate::clock::Clock;
use crate::environment::{Environment, cores, receive_buffer_errors};
use crate::failure::Failure;
use crate::gate::Gate;
use crate::progress::Progress;
use crate::protocol::{Kit, Protocol};
use crate::report::{Load, Report, Run};
use crate::schedule::{Rate, Shape};
use crate::self_host::{SelfHosted, ServerReport};
use crate::sockets::{self, Sources};
use crate::tally::Tally;
use crate::worker::{Message, Share, Worker};

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// From the moment when all threads are ready to the first datagram.
const HEAD_START_NS: u64 = 50_000_000;
/// Sessions of one thread that are set up or closed at the same time, unless a storm is asked for.
const WINDOW: usize = 64;
/// Where noray's registrar is if nobody says otherwise.
const REGISTRAR_PORT: u16 = 8809;
/// Receive slots of one thread.
const SLOTS: u32 = 4096;

/// Runs the load of `plan`.
///
/// # Errors
/// [`Failure`] if there is nothing to report.
pub fn run(plan: &Plan) -> Result<Report, Failure> {
    let host = Host::open(plan)?;
    let mut run = host.measure(plan)?;
    run.server = host.finish();
    Ok(Report::new(run))
}

/// Where loads run: the server, the packet backend, the cores.
pub struct Host {
    hosted: Option<SelfHosted>,
    target: SocketAddr,
    registrar: SocketAddr,
    use_ring: bool,
    cores: Vec<usize>,
}

impl Host {
    /// Gets ready for loads like `plan`.
    ///
    /// # Errors
    /// [`Failure`] if that cannot be.
    pub fn open(plan: &Plan) -> Result<Self, Failure> {
        let cores = cores();
        let use_ring = choose_backend(plan.io)?;
        let members = u64::from(plan.sessions) * u64::from(plan.members);
        // Players of noray have a connection beside their socket.
        let connections = if plan.protocol == Protocol::Noray {
            members
        } else {
            0
        };
        let members = members + connections;
        sockets::raise_file_limit(members + spare_sockets(plan) * plan.threads as u64)?;
        let (hosted, target) = match plan.target {
            Some(target) => (None, target),
            None => {
                let hosted = SelfHosted::start(plan, cores.len())?;
                let target = hosted.address();
                (Some(hosted), target)
            }
        };
        let registrar = match &hosted {
            Some(hosted) => hosted.registrar(),
            None => plan
                .registrar
                .unwrap_or(SocketAddr::new(target.ip(), REGISTRAR_PORT)),
        };
        Ok(Self {
            hosted,
            target,
            registrar,
            use_ring,
            cores,
        })
    }

    /// Runs one load and judges it, without what the server has to say.
    ///
    /// # Errors
    /// [`Failure`] if there is nothing to report.
    pub fn load(&self, plan: &Plan) -> Result<Report, Failure> {
        self.measure(plan).map(Report::new)
    }

    fn measure(&self, plan: &Plan) -> Result<Run, Failure> {
        let shards = self.hosted.as_ref().map(SelfHosted::shards);
        let pinned_to = shards.and_then(|shards| self.cores.get(shards..));
        let errors_before = receive_buffer_errors();
        let kit = Kit {
            protocol: plan.protocol,
            server: self.target,
            registrar: self.registrar,
            credential: plan.credential.clone(),
            turn_mode: plan.turn_mode,
            turn_framing: plan.turn_framing,
            punches: plan.storm == Some(Storm::Punch),
        };
        let tally = run_threads(plan, &kit, self.use_ring, pinned_to.unwrap_or_default())?;
        let backend = if self.use_ring { "uring" } else { "mmsg" };
        Ok(Run {
            load: load_of(plan, self.target, backend, &tally),
            expectations: plan.expectations.clone(),
            lag_limit_ns: u64::try_from(plan.lag_limit.as_nanos()).unwrap_or(u64::MAX),
            seed: plan.seed,
            processes: 1,
            environment: Environment::detect(self.cores.len(), plan.command_line.clone()),
            server: None,
            receive_buffer_errors: receive_buffer_errors().saturating_sub(errors_before),
            tally,
        })
    }

    /// Stops the server, if this process hosts it.
    pub fn finish(self) -> Option<ServerReport> {
        self.hosted.map(SelfHosted::finish)
    }
}

/// What was asked for, as a report has it.
pub fn load_of(plan: &Plan, target: SocketAddr, backend: &str, tally: &Tally) -> Load {
    let named = |value: &dyn ValueName| value.name();
    Load {
        target: target.to_string(),
        protocol: named(&plan.protocol),
        sessions: plan.sessions,
        members: plan.members,
        topology: named(&plan.topology),
        rate_per_sec: plan.rate,
        arrivals: named(&plan.arrivals),
        ramp_from_per_sec: plan.ramp_from,
        size_bytes: plan.sizes.others,
        host_size_bytes: plan.sizes.host,
        warm_up_secs: plan.warm_up.as_secs_f64(),
        duration_secs: plan.duration.as_secs_f64(),
        churn_per_sec: plan.churn,
        setup_per_sec: plan.setup_rate,
        storm: plan.storm.as_ref().map(|storm| storm.name()),
        flood_per_sec: plan.flood,
        threads: plan.threads,
        io: backend.to_owned(),
        member_limits: tally.limits,
    }
}

/// A choice as the command line has it.
trait ValueName {
    fn name(&self) -> String;
}

impl<T: ValueEnum> ValueName for T {
    fn name(&self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Whether to use io_uring.
fn choose_backend(choice: IoChoice) -> Result<bool, Failure> {
    match (choice, ring::probe()) {
        (IoChoice::Mmsg, _) => Ok(false),
        (_, Ok(())) => Ok(true),
        (IoChoice::Auto, Err(SetupError::Unavailable { .. })) => Ok(false),
        (_, Err(error)) => Err(backend_refused(&error)),
    }
}

fn backend_refused(error: &SetupError) -> Failure {
    Failure::configuration(
        format!("the packet backend: {error}"),
        "remove the cause or use --io mmsg",
    )
}

/// Sockets of one thread that may linger when their session is replaced.
fn spare_sockets(plan: &Plan) -> u64 {
    128 * u64::from(plan.members) + 16
}

fn run_threads(
    plan: &Plan,
    kit: &Kit,
    use_ring: bool,
    pinned_to: &[usize],
) -> Result<Tally, Failure> {
    let sources = Sources::new(kit.server, &plan.sources)?;
    let clock = Clock::start();
    let gate = Arc::new(Gate::default());
    let (sender, messages) = unbounded();
    std::thread::scope(|scope| {
        for share in shares(plan, kit, &sources) {
            let core = pinned_to.get(share.thread).copied();
            let (gate, sender) = (Arc::clone(&gate), sender.clone());
            let spare = spare_sockets(plan);
            scope.spawn(move || {
                let live = Life {
                    share,
                    spare,
                    clock,
                    gate,
                    core,
                };
                let ended = if use_ring {
                    live.live(Ring::new, &sender)
                } else {
                    live.live(Mmsg::new, &sender)
                };
                let _ = sender.send(match ended {
                    Ok(tally) => Message::Done(Box::new(tally)),
                    Err(failure) => Message::Failed(failure),
                });
            });
        }
        drop(sender);
        let ended = conduct(plan, &clock, &gate, &messages);
        gate.stop();
        ended
    })
}

/// What a thread is born with.
struct Life {
    share: Share,
    spare: u64,
    clock: Clock,
    gate: Arc<Gate>,
    core: Option<usize>,
}

impl Life {
    fn live<P: PacketIo>(
        self,
        backend: impl FnOnce(&IoConfig) -> Result<P, SetupError>,
        messages: &Sender<Message>,
    ) -> Result<Tally, Failure> {
        if let Some(core) = self.core {
            let mut set = rustix::thread::CpuSet::new();
            set.set(core);
            // A host that refuses loses nothing but evenness.
            let _ = rustix::thread::sched_setaffinity(None, &set);
        }
        // Wake up when a slot is due, not up to 50 us later (PR_SET_TIMERSLACK, prctl(2)).
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZero::new(1));
        let members = self.share.places.len() as u64 * u64::from(self.share.members);
        let max_sockets = (members + self.spare).min(u64::from(MAX_SOCKETS));
        let config = IoConfig {
            slots: SLOTS,
            max_sockets: u32::try_from(max_sockets).expect("at most 2^20"),
            ..IoConfig::default()
        };
        let io = backend(&config).map_err(|error| backend_refused(&error))?;
        Worker::new(io, self.share, self.clock, self.gate).run(messages)
    }
}

/// What each thread gets of the load.
fn shares(plan: &Plan, kit: &Kit, sources: &Sources) -> Vec<Share> {
    let directions: Arc<[(u8, u8)]> = plan.directions().into();
    let threads = u32::try_from(plan.threads).expect("at most 128 threads");
    // Differs between runs even if their seed is the same, so that nobody takes late datagrams of an earlier run for their own.
    let run = std::process::id() ^ (plan.seed as u32).rotate_left(16);
    (0..threads)
        .map(|thread| {
            let bound = |thread: u32| {
                let bound = u64::from(plan.sessions) * u64::from(thread) / u64::from(threads);
                u32::try_from(bound).expect("at most the sessions")
            };
            let places = bound(thread)..bound(thread + 1);
            let sessions = places.len() as u64;
            let part = |rate: u64| Rate {
                slots: rate * sessions,
                seconds: u64::from(plan.sessions),
            };
            let fraction = sessions as f64 / f64::from(plan.sessions);
            Share {
                thread: thread as usize,
                places,
                members: plan.members,
                rate: part(plan.rate),
                shape: Shape {
                    poisson: (plan.arrivals == Arrivals::Poisson)
                        .then(|| plan.seed ^ u64::from(thread) << 40),
                    ramp_from: plan.ramp_from.map(part),
                },
                sizes: plan.sizes,
                setup: plan.setup_rate.map(|rate| Rate {
                    slots: (rate * fraction * 1e6) as u64,
                    seconds: 1_000_000,
                }),
                window: match plan.storm {
                    Some(_) => usize::MAX,
                    None => WINDOW,
                },
                flood: part(plan.flood),
                churn: plan.churn * fraction,
                kit: kit.clone(),
                directions: Arc::clone(&directions),
                sources: sources.clone(),
                run,
                seed: plan.seed,
                warm_up: plan.warm_up,
                duration: plan.duration,
                lag_limit: plan.lag_limit,
            }
        })
        .collect()
}

/// Waits for the threads, lets the load begin when all are ready, and sums up.
fn conduct(
    plan: &Plan,
    clock: &Clock,
    gate: &Gate,
    messages: &Receiver<Message>,
) -> Result<Tally, Failure> {
    let mut progress = Progress::new(plan.find_max);
    progress.set_up(u64::from(plan.sessions));
    let mut ready = 0;
    let mut sessions = 0;
    let mut done = 0;
    let mut total = Tally::default();
    let load_ns = u64::try_from((plan.warm_up + plan.duration).as_nanos()).unwrap_or(u64::MAX);
    let mut closing = false;
    while done < plan.threads {
        match messages.recv_timeout(LOOK) {
            Ok(Message::Ready { opened }) => {
                ready += 1;
                sessions += opened;
                if ready == plan.threads && sessions == 0 {
                    gate.stop();
                } else if ready == plan.threads {
                    gate.open(clock.now().ns + HEAD_START_NS);
                    progress.load(plan.rate, plan.warm_up + plan.duration, plan.threads);
                }
            }
            Ok(Message::Live(live)) => progress.tell(&live),
            Ok(Message::Done(tally)) => {
                done += 1;
                total.merge(*tally);
            }
            Ok(Message::Failed(failure)) => return Err(failure),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::internal(
                    "a generator thread has died",
                    "please report this with the lines above",
                ));
            }
        }
        match gate.start_ns() {
            None => progress.sessions(gate.opened.load(Relaxed)),
            Some(start_ns) if clock.now().ns >= start_ns + load_ns => {
                if !closing {
                    closing = true;
                    progress.closing();
                }
            }
            Some(_) => progress.look(),
        }
    }
    progress.finish();
    Ok(total)
}
