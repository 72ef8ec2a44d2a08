//! A chat of any number of players who know a code.
//!
//! ```text
//! cargo run -p waypost-client --example chat -- host
//! cargo run -p waypost-client --example chat -- join BAD-KIF-ROM --name Ann
//! ```

mod options;

use std::io::{self, BufRead};
use std::sync::Arc;
use std::{process, thread};

use waypost_client::{
    Error, HostConfig, JoinConfig, Link, Path, SeatId, Session, SessionEvent, describe,
};

const USAGE: &str = "usage: chat host|join CODE [--server HOST:PORT] [--name NAME]";
const APPLICATION: &str = "waypost-chat";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut name = format!("player {}", process::id());
    let meeting = options::read(|option, value| (option == "--name").then(|| name = value));
    let Some(meeting) = meeting else {
        eprintln!("{USAGE}");
        process::exit(2);
    };
    let name = name.into_bytes();
    let session = match &meeting.code {
        None => {
            let mut config = HostConfig::new(APPLICATION);
            config.player.data = name;
            Session::host(&meeting.server, config)?
        }
        Some(code) => {
            let mut config = JoinConfig::new(APPLICATION);
            config.player.data = name;
            Session::join(&meeting.server, code, config)?
        }
    };
    let session = Arc::new(session);
    println!(
        "* you are in session {}; type to talk, end with Ctrl-D",
        session.code()?
    );
    let watcher = Arc::clone(&session);
    thread::spawn(move || watch(&watcher));
    for line in io::stdin().lock().lines() {
        let line = line?;
        for member in session.members() {
            // Whoever is just leaving hears no more.
            let sent = session
                .link(member.id)
                .map(|link| link.send(line.as_bytes()));
            if let Ok(Err(error)) = sent {
                eprintln!("* {error}");
            }
        }
    }
    Ok(session.leave()?)
}

fn name_of(session: &Session, id: SeatId) -> String {
    let member = session.members().into_iter().find(|member| member.id == id);
    member.map_or_else(
        || format!("seat {}", id.seat),
        |member| String::from_utf8_lossy(&member.data).into_owned(),
    )
}

/// Shows what happens, and has every member's words shown.
fn watch(session: &Session) {
    loop {
        match session.next_event(None) {
            Ok(SessionEvent::MemberJoined(id)) => {
                let name = name_of(session, id);
                println!("* {name} is here");
                if let Ok(link) = session.link(id) {
                    thread::spawn(move || listen(&name, &link));
                }
            }
            Ok(SessionEvent::MemberLeft(id, reason)) => {
                println!("* seat {} {}", id.seat, describe(reason));
            }
            Ok(SessionEvent::HostChanged(id)) => {
                if session.is_host() {
                    println!("* you are the host now");
                } else {
                    println!("* {} is the host now", name_of(session, id));
                }
            }
            Ok(SessionEvent::PathChanged(id, path)) => {
                let way = match path {
                    Path::Relayed => "is reached through the relay",
                    Path::Punching => "is reached through the relay while a direct path is tried",
                    Path::Direct => "is reached directly",
                    Path::Unreachable => "cannot be reached",
                };
                println!("* {} {way}", name_of(session, id));
            }
            Ok(SessionEvent::CodeChanged { new, .. }) => {
                println!("* the code is {new} now");
            }
            Ok(SessionEvent::ServerSilent) => println!("* the server does not answer"),
            Ok(SessionEvent::ServerBack | SessionEvent::Resumed) => {
                println!("* the server answers again");
            }
            Ok(SessionEvent::Removed(reason)) => {
                println!("* it is over for you: {}", describe(reason));
            }
            // Nothing that somebody who chats needs to know.
            Ok(_) => {}
            Err(Error::Left) => return,
            Err(error) => {
                println!("* {error}");
                process::exit(1);
            }
        }
    }
}

fn listen(name: &str, link: &Link) {
    let mut buf = [0; 1500];
    while let Ok(len) = link.recv(&mut buf) {
        println!("{name}: {}", String::from_utf8_lossy(&buf[..len]));
    }
}
