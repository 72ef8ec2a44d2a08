//! The options that the examples have in common: who hosts, who joins, and where the server is.

/// Which session.
pub struct Meeting {
    /// Of the session to join; who has none hosts.
    pub code: Option<String>,
    pub server: String,
}

/// Reads the arguments of the process. `own` takes an option of the example's own with its value; `None` if that is wrong.
pub fn read(mut own: impl FnMut(&str, String) -> Option<()>) -> Option<Meeting> {
    let mut arguments = std::env::args().skip(1);
    let mut hosts = false;
    let mut meeting = Meeting {
        code: None,
        server: "127.0.0.1:3478".to_owned(),
    };
    while let Some(option) = arguments.next() {
        match option.as_str() {
            "host" => hosts = true,
            "join" => meeting.code = Some(arguments.next()?),
            "--server" => meeting.server = arguments.next()?,
            other => own(other, arguments.next()?)?,
        }
    }
    (hosts != meeting.code.is_some()).then_some(meeting)
}
