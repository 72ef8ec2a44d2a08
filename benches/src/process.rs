//! The measured server: a child process on a core of its own, and its CPU clock.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::mem::zeroed;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A child process that ends when this value is dropped, or with us.
#[derive(Debug)]
pub struct ServerProcess(Child);

impl ServerProcess {
    /// Starts a program with its threads confined to `core`. `errors` is its standard error.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        core: usize,
        errors: Stdio,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        // SAFETY: between fork and exec only two system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                    return Err(io::Error::last_os_error());
                }
                pin_to_core(core)
            });
        }
        let child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", program.display()))
        })?;
        Ok(Self(child))
    }

    /// Standard input and output, once.
    ///
    /// # Errors
    ///
    /// When they have been taken before.
    pub fn pipes(&mut self) -> io::Result<(ChildStdin, ChildStdout)> {
        let pipes = self.0.stdin.take().zip(self.0.stdout.take());
        pipes.ok_or_else(|| io::Error::other("the pipes are taken"))
    }

    /// CPU time of all its threads so far, user and kernel, with the clock's resolution
    /// (clock_getcpuclockid(3)), not that of ticks.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let mut clock = 0;
        // SAFETY: both calls write to variables of this frame only.
        unsafe {
            let error = libc::clock_getcpuclockid(self.0.id() as libc::pid_t, &raw mut clock);
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let mut time: libc::timespec = zeroed();
            if libc::clock_gettime(clock, &raw mut time) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
        }
    }

    /// Time that its threads so far were ready to run and another process had the core
    /// (proc_pid_schedstat): a run in which this grows says little.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub fn waited_for_core(&self) -> io::Result<Duration> {
        waited_for_core(&format!("/proc/{}/task", self.0.id()))
    }

    /// Resident memory (proc_pid_statm(5)).
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.0.id()))?;
        let pages: u64 = text
            .split_whitespace()
            .nth(1)
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| io::Error::other("statm is not what it should be"))?;
        Ok(pages * 4096)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As [`ServerProcess::waited_for_core`], for ourselves.
///
/// # Errors
///
/// When proc is not mounted.
pub fn we_waited_for_core() -> io::Result<Duration> {
    waited_for_core("/proc/self/task")
}

fn waited_for_core(threads: &str) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(threads)? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += text
            .split_whitespace()
            .nth(1)
            .and_then(|field| field.parse().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Confines the calling thread, and the threads and processes it starts, to one core.
///
/// # Errors
///
/// When there is no such core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    // SAFETY: all-zero is an empty set; CPU_SET checks its bounds; the call reads `set` only.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::CPU_SET(core, &mut set);
        if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
