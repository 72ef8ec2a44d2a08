//! Streams, list filters and the settings of ways, through the C interface against a real server.

#![allow(clippy::unwrap_used, unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::ptr::{null, null_mut};
use std::thread;

use waypost::*;
use waypost_server::serve::Server;

const LONG_MS: u32 = 30_000;

fn ok(status: c_int) {
    let mut text = [0; 512];
    // SAFETY: the buffer is as long as is said.
    unsafe { waypost_error_text(text.as_mut_ptr(), text.len()) };
    // SAFETY: the library ends its texts with a null byte.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    assert_eq!(status, WAYPOST_OK, "{text:?}");
}

/// A configuration that is freed with this.
struct Config(*mut WaypostConfig);

impl Config {
    fn new() -> Self {
        // SAFETY: a text.
        Self(unsafe { waypost_config_new(c"ways".as_ptr()) })
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: made above, freed once.
        unsafe { waypost_config_free(self.0) };
    }
}

/// A session that is freed with this. Several threads may use it.
struct Seat(*mut WaypostSession);

// SAFETY: the header allows it.
unsafe impl Sync for Seat {}

impl Drop for Seat {
    fn drop(&mut self) {
        // SAFETY: made by the library, freed once, when no other thread is left.
        unsafe { waypost_session_free(self.0) };
    }
}

impl Seat {
    /// The only other member, once it is there.
    fn other(&self) -> u32 {
        // SAFETY: all that is pointed to is alive and as long as is said; all zeros are a member.
        unsafe {
            let mut member: [WaypostMember; 1] = std::mem::zeroed();
            let mut count = 0;
            loop {
                ok(waypost_members(
                    self.0,
                    member.as_mut_ptr(),
                    1,
                    &raw mut count,
                ));
                if count == 1 {
                    return member[0].id;
                }
                thread::yield_now();
            }
        }
    }

    /// What was heard on a stream to the other, on which the same was said.
    fn exchange(&self, said: &[u8]) -> Vec<u8> {
        let (mut descriptor, mut strategy) = (-1, 0);
        let other = self.other();
        // SAFETY: all that is pointed to is alive; the descriptor is this function's.
        let mut stream = unsafe {
            ok(waypost_connect_stream(
                self.0,
                other,
                LONG_MS,
                &raw mut descriptor,
                &raw mut strategy,
            ));
            File::from_raw_fd(descriptor)
        };
        let possible = [
            WAYPOST_STRATEGY_DIRECT,
            WAYPOST_STRATEGY_REVERSE,
            WAYPOST_STRATEGY_TCP_PUNCH,
        ];
        assert!(possible.contains(&strategy), "{strategy}");
        stream.write_all(said).unwrap();
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).unwrap();
        heard
    }
}

fn host(server: &CStr, config: &Config) -> (Seat, CString) {
    let (mut made, mut code) = (null_mut(), [0; 16]);
    // SAFETY: texts, a configuration and places for the results, all alive.
    unsafe {
        ok(waypost_host(server.as_ptr(), config.0, &raw mut made));
        ok(waypost_code(made, code.as_mut_ptr(), code.len()));
        (Seat(made), CStr::from_ptr(code.as_ptr()).to_owned())
    }
}

#[test]
fn two_connect_a_stream_and_are_told_by_which_way() {
    let server = Server::start_with(&[]).unwrap();
    let at = CString::new(server.main_addr().to_string()).unwrap();
    let config = Config::new();
    let (host, code) = host(&at, &config);
    let mut made = null_mut();
    // SAFETY: texts, a configuration and a place for the result, all alive.
    unsafe {
        ok(waypost_join(
            at.as_ptr(),
            code.as_ptr(),
            config.0,
            &raw mut made,
        ));
    }
    let guest = Seat(made);
    thread::scope(|scope| {
        let hears = scope.spawn(|| host.exchange(b"by the host!"));
        assert_eq!(guest.exchange(b"by the guest"), b"by the host!");
        assert_eq!(hears.join().unwrap(), b"by the guest");
    });
    let mut report: [c_char; 1_024] = [0; 1_024];
    let other = guest.other();
    // SAFETY: the buffer is as long as is said, and the text in it ends with a null byte.
    let report = unsafe {
        ok(waypost_report(
            guest.0,
            other,
            report.as_mut_ptr(),
            report.len(),
        ));
        CStr::from_ptr(report.as_ptr()).to_str().unwrap()
    };
    assert_eq!(report.lines().count(), 6, "{report}");
    assert!(report.contains("relay: connected after 0 ms"), "{report}");
}

#[test]
fn a_list_shows_what_passes_the_filter() {
    let server = Server::start_with(&[]).unwrap();
    let at = CString::new(server.main_addr().to_string()).unwrap();
    let mut seats = Vec::new();
    for (name, password) in [(c"red one", c""), (c"red two", c"sesame"), (c"blue", c"")] {
        let config = Config::new();
        // SAFETY: a configuration and texts, all alive.
        unsafe {
            ok(waypost_config_set_name(config.0, name.as_ptr()));
            ok(waypost_config_set_password(config.0, password.as_ptr()));
            ok(waypost_config_set_listed(config.0, true));
        }
        seats.push(host(&at, &config));
    }
    let config = Config::new();
    let count = |filter: *const WaypostListFilter| {
        let mut made = null_mut();
        // SAFETY: texts, a configuration, a filter or null, and a place for the result, all alive; the list is freed once.
        unsafe {
            ok(waypost_list_read(
                at.as_ptr(),
                config.0,
                filter,
                &raw mut made,
            ));
            let count = waypost_list_count(made);
            waypost_list_free(made);
            count
        }
    };
    assert_eq!(count(null()), 3);
    let red = WaypostListFilter {
        name_prefix: c"red".as_ptr(),
        has_room: true,
        unlocked: true,
        no_password: false,
    };
    assert_eq!(count(&raw const red), 2);
    let open = WaypostListFilter {
        no_password: true,
        ..red
    };
    assert_eq!(count(&raw const open), 1);
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let config = Config::new();
    let turn = |address: *const c_char, transport| {
        // SAFETY: a configuration and texts, all alive.
        unsafe {
            waypost_config_set_turn(
                config.0,
                address,
                transport,
                c"ann".as_ptr(),
                c"sesame".as_ptr(),
                c"turn.example".as_ptr(),
                c"roots".as_ptr().cast(),
                5,
            )
        }
    };
    let address = c"203.0.113.9:3478".as_ptr();
    ok(turn(address, WAYPOST_TURN_UDP));
    ok(turn(address, WAYPOST_TURN_TCP));
    ok(turn(null(), WAYPOST_TURN_TCP));
    // SAFETY: a configuration and texts, all alive.
    unsafe {
        ok(waypost_config_set_turn_candidate(
            config.0,
            address,
            WAYPOST_TURN_UDP,
            c"ann".as_ptr(),
            c"sesame".as_ptr(),
            null(),
            null(),
            0,
        ));
    }
    assert_eq!(turn(address, 7), WAYPOST_INVALID);
    assert_eq!(turn(c"nowhere".as_ptr(), WAYPOST_TURN_UDP), WAYPOST_INVALID);
    let has_tls = cfg!(feature = "tls");
    let expected = if has_tls { WAYPOST_OK } else { WAYPOST_INVALID };
    assert_eq!(turn(address, WAYPOST_TURN_TLS), expected);
    // SAFETY: a configuration that is alive.
    unsafe {
        ok(waypost_config_set_strategies(
            config.0,
            WAYPOST_STRATEGY_UDP_PUNCH + WAYPOST_STRATEGY_RELAY,
        ));
        assert_eq!(waypost_config_set_strategies(config.0, 0), WAYPOST_INVALID);
        assert_eq!(waypost_config_set_strategies(config.0, 65), WAYPOST_INVALID);
        ok(waypost_config_set_ports(config.0, 7_777, 7_777, false));
        ok(waypost_config_set_guesses_ports(config.0, true));
    }
}
