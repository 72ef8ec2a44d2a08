//! The submission and completion queues and the one system call that moves both.
//!
//! It enters through the registered ring descriptor, which the io-uring crate keeps only as long as
//! a `Submitter` lives, hence the own call. It knows nothing of what the requests mean.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{CompletionQueue, EnterFlags, IoUring, Submitter, squeue};

use crate::mmsg::sys::timespec;

/// `IORING_REGISTER_RING_FDS` and its inverse of include/uapi/linux/io_uring.h.
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArg {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_us: u32,
    timespec: u64,
}

pub(super) struct Queue {
    uring: IoUring,
    /// The index of the ring among this thread's registered descriptors.
    registered: Option<u32>,
    pub(super) enters: u64,
}

impl Queue {
    pub(super) fn new(uring: IoUring) -> Self {
        let mut update = RingFdUpdate {
            offset: u32::MAX,
            reserved: 0,
            data: uring.as_raw_fd() as u64,
        };
        // SAFETY: the kernel reads and writes `update`, on this stack frame, during the call only.
        let registered = unsafe {
            let (fd, update) = (uring.as_raw_fd(), &raw mut update);
            libc::syscall(
                libc::SYS_io_uring_register,
                fd,
                REGISTER_RING_FDS,
                update,
                1,
            )
        };
        // A thread can register 16 rings; beyond that the plain descriptor does.
        let registered = (registered == 1).then_some(update.offset);
        Self {
            uring,
            registered,
            enters: 0,
        }
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        self.uring.submitter()
    }

    pub(super) fn has_min_wait(&self) -> bool {
        self.uring.params().is_feature_min_timeout()
    }

    /// Puts a request into the submission queue, after a submission if it is full.
    ///
    /// # Safety
    ///
    /// Whatever the request points at must stay valid until the kernel is done with it.
    #[inline]
    pub(super) unsafe fn push(&mut self, request: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise.
        while unsafe { self.uring.submission().push(request) }.is_err() {
            self.submit()?;
        }
        Ok(())
    }

    /// Whether the kernel has taken every request.
    pub(super) fn is_submitted(&mut self) -> bool {
        self.uring.submission().is_empty()
    }

    pub(super) fn completions(&mut self) -> CompletionQueue<'_> {
        self.uring.completion()
    }

    /// Whether completions did not fit and wait inside the kernel.
    pub(super) fn is_overflown(&mut self) -> bool {
        self.uring.submission().cq_overflow()
    }

    /// Submits everything; with DEFER_TASKRUN this completes no receives.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.is_submitted() {
            match self.enter(0, EnterFlags::empty(), None) {
                Ok(_) => {}
                Err(error) if is_transient(&error) => {
                    // Completions back up: let the kernel flush them before it takes more.
                    self.enter(0, EnterFlags::GETEVENTS, None)
                        .or_else(ignore_transient)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Submits everything and collects completions: at once for `want` 0, else when `want` are
    /// there, or `min_wait_us` (if not 0) have passed and at least one is there, or after `timeout`.
    pub(super) fn enter_and_wait(
        &mut self,
        want: u32,
        min_wait_us: u32,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        // Without a timeout a min_wait ends with nothing each time it passes.
        let timeout = if min_wait_us > 0 {
            timeout.or(Some(Duration::from_secs(60)))
        } else {
            timeout
        };
        let timeout = timeout.map(timespec);
        let argument = WaitArg {
            sigmask: 0,
            sigmask_bytes: 0,
            min_wait_us,
            timespec: timeout
                .as_ref()
                .map_or(0, |timeout| std::ptr::from_ref(timeout) as u64),
        };
        loop {
            let pending = self.uring.submission().len();
            match self.enter(want, EnterFlags::GETEVENTS, Some(&argument)) {
                // A short count means that it returned before it waited.
                Ok(submitted) if submitted < pending => {}
                Ok(_) => return Ok(()),
                Err(error) if is_transient(&error) => {
                    if self.is_submitted() {
                        return Ok(());
                    }
                    self.submit()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn enter(
        &mut self,
        want: u32,
        flags: EnterFlags,
        argument: Option<&WaitArg>,
    ) -> io::Result<usize> {
        self.enters += 1;
        let to_submit = self.uring.submission().len();
        let (fd, registered) = match self.registered {
            Some(index) => (index as RawFd, EnterFlags::REGISTERED_RING),
            None => (self.uring.as_raw_fd(), EnterFlags::empty()),
        };
        let extended = if argument.is_some() {
            EnterFlags::EXT_ARG
        } else {
            EnterFlags::empty()
        };
        let flags = (flags | registered | extended).bits();
        let bytes = if argument.is_some() {
            size_of::<WaitArg>()
        } else {
            0
        };
        let argument = argument.map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `argument` and the timespec it points at live in the caller's frame and are read
        // during the call only; what the requests point at is promised by whoever pushed them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd,
                to_submit as libc::c_uint,
                want,
                flags,
                argument,
                bytes,
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

/// The wait is over, a signal came, or completions back up.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
    )
}

fn ignore_transient(error: io::Error) -> io::Result<usize> {
    if is_transient(&error) {
        Ok(0)
    } else {
        Err(error)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(index) = self.registered {
            // The registration keeps the ring alive, and a thread has few places for them.
            let mut update = RingFdUpdate {
                offset: index,
                reserved: 0,
                data: 0,
            };
            // SAFETY: the kernel reads `update` during the call only.
            unsafe {
                let (fd, update) = (self.uring.as_raw_fd(), &raw mut update);
                libc::syscall(
                    libc::SYS_io_uring_register,
                    fd,
                    UNREGISTER_RING_FDS,
                    update,
                    1,
                );
            }
        }
    }
}
