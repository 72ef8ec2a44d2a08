//! The C example, compiled as C and as C++, linked with the static and the shared library, against a real server.

#![allow(clippy::unwrap_used)]

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use waypost_server::serve::Server;

/// A library that cargo built for this test.
fn library(name: &str) -> PathBuf {
    let deps = env::current_exe().unwrap();
    let deps = deps.parent().unwrap();
    let places = [deps.join(name), deps.parent().unwrap().join(name)];
    let found = places.into_iter().find(|place| place.exists());
    found.unwrap_or_else(|| panic!("cargo has built no {name}"))
}

fn compile(compiler: &str, standard: &str, library: &Path, to: &Path) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new(compiler)
        .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o"])
        .arg(to)
        .arg("-I")
        .arg(here.join("include"))
        .args(["-x", if compiler == "c++" { "c++" } else { "c" }])
        .arg(here.join("examples/talk.c"))
        .args(["-x", "none"])
        .arg(library)
        .args(["-lpthread", "-ldl", "-lm"])
        .status();
    assert!(status.unwrap().success(), "{compiler} {standard}");
}

fn talk(program: &Path, library: &Path) {
    let server = Server::start_with(&[]).unwrap();
    let at = server.main_addr().to_string();
    let run = |arguments: &[&str]| {
        Command::new(program)
            .arg(&at)
            .args(arguments)
            .env("LD_LIBRARY_PATH", library.parent().unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut host = run(&["host"]);
    let mut said_by_host = BufReader::new(host.stdout.take().unwrap());
    let mut code = String::new();
    said_by_host.read_line(&mut code).unwrap();
    let guest = run(&["join", code.trim()]).wait_with_output().unwrap();
    let said_by_guest = String::from_utf8(guest.stdout).unwrap();
    assert!(guest.status.success(), "{said_by_guest}");
    assert!(
        said_by_guest.contains("says: hello to you"),
        "{said_by_guest}"
    );
    assert!(host.wait().unwrap().success());
    let mut rest = String::new();
    said_by_host.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("says: hello from C"), "{rest}");
    let wrong = run(&["join", "no such session"]).wait().unwrap();
    assert_eq!(wrong.code(), Some(1));
}

#[test]
fn the_example_talks_in_c_and_in_cpp() {
    let to = env::temp_dir().join(format!("waypost-talk-{}", std::process::id()));
    for (compiler, standard, name) in [
        ("cc", "-std=c99", "libwaypost.a"),
        ("cc", "-std=c99", "libwaypost.so"),
        ("c++", "-std=c++11", "libwaypost.a"),
    ] {
        let library = library(name);
        compile(compiler, standard, &library, &to);
        talk(&to, &library);
    }
    std::fs::remove_file(&to).unwrap();
}
