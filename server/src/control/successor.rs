//! The program that takes this one's place in the same process (`SIGUSR2`): the binary that is on disk by then, with the arguments and
//! the environment that this one was started with. It is tried before anything is given up for it.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long it may take to check its configuration.
const CHECK_LIMIT: Duration = Duration::from_secs(5);
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Whom this process may become.
#[derive(Clone, Debug)]
pub struct Successor {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Successor {
    /// What these arguments, the name of the program first, would start again. To be called at start, while the path of the
    /// running binary is still that of a file.
    pub fn of(arguments: &[OsString]) -> Self {
        let name = arguments.first().map(Path::new).unwrap_or(Path::new(""));
        // The path as it was given may be a link, which leads to another version by then.
        let given = name
            .components()
            .nth(1)
            .and_then(|_| std::path::absolute(name).ok());
        Self {
            program: given
                .or_else(|| std::env::current_exe().ok())
                .unwrap_or_else(|| name.into()),
            arguments: arguments.iter().skip(1).cloned().collect(),
        }
    }

    /// Whether it runs here and finds its configuration sound; else why not.
    pub async fn check(&self) -> Result<(), String> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg("--check-config")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", self.program.display()))?;
        let give_up = Instant::now() + CHECK_LIMIT;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    let mut said = [0; 1024];
                    let len = child
                        .stderr
                        .take()
                        .and_then(|mut from| from.read(&mut said).ok());
                    let said = String::from_utf8_lossy(&said[..len.unwrap_or(0)]);
                    return Err(format!("its check ended with {status}: {}", said.trim()));
                }
                Ok(None) if Instant::now() < give_up => sleep(CHECK_INTERVAL).await,
                still => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("its check does not end: {still:?}"));
                }
            }
        }
    }

    /// Becomes it. Returns only if that is impossible.
    pub fn replace(&self) -> std::io::Error {
        Command::new(&self.program).args(&self.arguments).exec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_kept_and_a_bare_name_is_this_binary() {
        let program = |name: &str| Successor::of(&[name.into(), "--shards=1".into()]).program;
        assert_eq!(
            program("/opt/current/waypost"),
            Path::new("/opt/current/waypost")
        );
        assert!(program("./waypost").is_absolute());
        assert_eq!(program("waypost"), std::env::current_exe().unwrap());
    }
}
