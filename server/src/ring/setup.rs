//! Making the ring, and finding out whether this host lets us.
//!
//! Linux 6.1 is the floor (DEFER_TASKRUN); later features are used when the kernel has them.

use std::io;

use io_uring::{IoUring, Probe, opcode, squeue};

use super::queue::Queue;
use super::token::Token;
use crate::packet_io::{IoConfig, SetupError};

/// Submission entries: more than one flush of staged sends needs.
pub(super) const SQ_ENTRIES: u32 = 2048;
/// Completion entries: more than all slots and all sends of a turn can complete.
const CQ_ENTRIES: u32 = 16384;

/// Says whether the io_uring backend would work here, by setting up a small one.
///
/// It does so on a thread of its own: some time after a ring is closed the kernel interrupts the thread that made it, whose
/// receives with a timeout then fail with EINTR (io_ring_exit_work in io_uring/io_uring.c; signal(7)).
///
/// # Errors
///
/// [`SetupError::Unavailable`] when the kernel is too old, or seccomp or
/// `kernel.io_uring_disabled` forbid it; [`SetupError::Limit`] when a limit is in the way.
pub fn probe() -> Result<(), SetupError> {
    let config = IoConfig {
        slots: 8,
        max_sockets: 1,
        ..IoConfig::default()
    };
    let trial = std::thread::Builder::new()
        .name("io-uring-probe".to_owned())
        .spawn(move || super::Ring::new(&config).map(drop))
        .map_err(refused("a thread", "raise the limit of processes"))?;
    trial
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(super) fn refused(
    what: &'static str,
    remedy: &'static str,
) -> impl Fn(io::Error) -> SetupError {
    move |source| match source.raw_os_error() {
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN) => SetupError::Limit {
            what,
            source,
            remedy,
        },
        _ => SetupError::Unavailable { what, source },
    }
}

const MEMORY: &str = "raise the memory limit (LimitMEMLOCK, ulimit -l, or the container's memory)";

/// A ring of this thread, proven to work.
pub(super) fn build(max_sockets: u32) -> Result<Queue, SetupError> {
    let uring = build_uring().map_err(refused("io_uring_setup", MEMORY))?;
    if !(uring.params().is_feature_ext_arg() && uring.params().is_feature_nodrop()) {
        let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        return Err(SetupError::Unavailable {
            what: "io_uring (Linux 6.1)",
            source,
        });
    }
    let mut probe = Probe::new();
    uring
        .submitter()
        .register_probe(&mut probe)
        .map_err(refused("io_uring_register (probe)", MEMORY))?;
    let wanted = [
        opcode::RecvMsg::CODE,
        opcode::Recv::CODE,
        opcode::Accept::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::Read::CODE,
        opcode::AsyncCancel::CODE,
    ];
    if !wanted.into_iter().all(|code| probe.is_supported(code)) {
        let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        return Err(SetupError::Unavailable {
            what: "an io_uring operation",
            source,
        });
    }
    uring
        .submitter()
        .register_files_sparse(max_sockets)
        .map_err(refused(
            "io_uring_register (files)",
            "raise the limit of open files (LimitNOFILE, ulimit -n) above the number of sockets, \
         or lower that",
        ))?;
    let mut queue = Queue::new(uring);
    let nop = opcode::Nop::new().build().user_data(Token::Probe.pack());
    prove(&mut queue, &nop).map_err(refused("io_uring_enter", MEMORY))?;
    Ok(queue)
}

fn build_uring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_cqsize(CQ_ENTRIES)
        .dontfork();
    // NO_SQARRAY is of Linux 6.6.
    match builder.clone().setup_no_sqarray().build(SQ_ENTRIES) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(SQ_ENTRIES),
        result => result,
    }
}

/// One request there and back: seccomp filters may allow the setup and forbid the use.
fn prove(queue: &mut Queue, nop: &squeue::Entry) -> io::Result<()> {
    // SAFETY: a NOP refers to no memory.
    unsafe { queue.push(nop)? };
    queue.enter_and_wait(1, 0, None)?;
    let back = queue
        .completions()
        .any(|cqe| cqe.user_data() == nop.get_user_data());
    if back {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forbidden_is_told_from_what_is_too_little() {
        for errno in [libc::EPERM, libc::ENOSYS, libc::EOPNOTSUPP, libc::EINVAL] {
            let error = refused("x", "y")(io::Error::from_raw_os_error(errno));
            assert!(matches!(error, SetupError::Unavailable { .. }), "{error}");
        }
        for errno in [libc::ENOMEM, libc::EMFILE] {
            let error = refused("x", "the remedy")(io::Error::from_raw_os_error(errno));
            assert!(matches!(error, SetupError::Limit { .. }), "{error}");
            assert!(error.to_string().contains("the remedy"));
        }
    }
}
