//! Why a load cannot be run: one line that says what is wrong and what to do. Never used for what a server under load does;
//! that is a figure of the report.

use std::fmt;

/// `EX_CONFIG` of sysexits.h: options, limits of the process, addresses.
const CONFIGURATION: u8 = 78;
/// `EX_SOFTWARE` of sysexits.h: something failed that had worked before.
const INTERNAL: u8 = 70;

/// The end of a run before it had a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    line: String,
    /// The exit code of the process.
    pub exit_code: u8,
}

impl Failure {
    /// Something that the user can change.
    pub fn configuration(wrong: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::new(wrong, remedy, CONFIGURATION)
    }

    /// Something that broke under way.
    pub fn internal(wrong: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::new(wrong, remedy, INTERNAL)
    }

    fn new(wrong: impl fmt::Display, remedy: impl fmt::Display, exit_code: u8) -> Self {
        let text = format!("{wrong}: {remedy}");
        Self {
            line: text.split_whitespace().collect::<Vec<_>>().join(" "),
            exit_code,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "waypost-loadgen: {}", self.line)
    }
}
