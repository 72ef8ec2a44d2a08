//! Whether `waypost.h` says what the library has.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::{env, fs};

#[test]
fn the_header_is_that_of_the_code() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in [
        "lib", "status", "config", "event", "list", "session", "ways",
    ] {
        builder = builder.with_src(here.join(format!("src/{file}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let header = here.join("include/waypost.h");
    if env::var_os("WAYPOST_WRITE_HEADER").is_some() {
        fs::write(&header, &made).unwrap();
    }
    let committed = fs::read_to_string(&header).unwrap_or_default();
    assert!(
        committed == made,
        "client/c/include/waypost.h is stale: WAYPOST_WRITE_HEADER=1 cargo test -p waypost-c --test header"
    );
}
