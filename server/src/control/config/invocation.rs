//! From the process's arguments, environment and file to what the process is asked to do.

use std::{ffi::OsString, fs, io, path::PathBuf};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    Config, ConfigError, Host, Origin, Settings,
    layers::unknown_key,
    noray,
    options::{CONFIG_FILE, OPTIONS, OptionSpec, Preset},
};

/// What the process is asked to do.
#[derive(Debug)]
pub enum Invocation {
    /// Serve.
    Serve(Box<Config>),
    /// Print this and end well: help, version, `--print-config`, `--check-config`.
    Print(String),
    /// Say what this host allows.
    Doctor(Box<Config>),
    /// Make a time-limited credential for this user, good for so many seconds.
    GenCredential(Box<Config>, String, u64),
}

/// Where options come from. Kept, so that a reload reads the same places again.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The command line, the program's name first.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// What defaults depend on.
    pub host: Host,
}

impl Sources {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self {
            arguments: std::env::args_os().collect(),
            environment: std::env::vars_os().collect(),
            host: Host::detect(|name| std::env::var_os(name)),
        }
    }

    /// What the process is asked to do.
    pub fn invocation(&self) -> Result<Invocation, ConfigError> {
        let matches = match command(&self.host).try_get_matches_from(&self.arguments) {
            Ok(matches) => matches,
            Err(asked) if !asked.use_stderr() => {
                return Ok(Invocation::Print(asked.render().to_string()));
            }
            Err(wrong) => return Err(in_one_line(&wrong)),
        };
        // Options may stand on either side of the subcommand; clap propagates them downwards.
        let (command, matches) = match matches.subcommand() {
            Some((name, inner)) => (Some(name), inner),
            None => (None, &matches),
        };
        let config = self.config(matches)?;
        if matches.get_flag("print-config") {
            Ok(Invocation::Print(config.settings.to_string()))
        } else if matches.get_flag("check-config") {
            let warnings = config
                .warnings
                .iter()
                .map(|text| format!("warning: {text}\n"));
            Ok(Invocation::Print(
                warnings
                    .chain(["the configuration is valid\n".to_owned()])
                    .collect(),
            ))
        } else if command == Some("doctor") {
            Ok(Invocation::Doctor(Box::new(config)))
        } else if command == Some(GEN_CREDENTIAL) {
            let name = matches.get_one::<String>("name").cloned();
            let secs = matches.get_one::<u64>("valid-secs").copied();
            Ok(Invocation::GenCredential(
                Box::new(config),
                name.unwrap_or_default(),
                secs.unwrap_or_default(),
            ))
        } else {
            Ok(Invocation::Serve(Box::new(config)))
        }
    }

    /// Reads everything again, as for a reload of a server that serves.
    pub fn reload(&self) -> Result<Config, ConfigError> {
        match self.invocation()? {
            Invocation::Serve(config)
            | Invocation::Doctor(config)
            | Invocation::GenCredential(config, ..) => Ok(*config),
            Invocation::Print(_) => Err(ConfigError::new(
                "nothing to reload",
                "start the server first",
            )),
        }
    }

    fn config(&self, matches: &ArgMatches) -> Result<Config, ConfigError> {
        let mut settings = Settings::defaults(&self.host);
        let environment = self.own_environment()?;
        let file = match matches.get_one::<PathBuf>(CONFIG_FILE.name) {
            Some(path) => Some(path.clone()),
            None => {
                let variable = CONFIG_FILE.variable();
                let found = environment.iter().find(|(name, _)| *name == variable);
                found.map(|(_, value)| PathBuf::from(value))
            }
        };
        if let Some(path) = file {
            let text = fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
            settings.lay_file(&path, &text)?;
        }
        let (of_noray, environment): (Vec<_>, Vec<_>) = environment
            .into_iter()
            .partition(|(name, _)| noray::is_variable(name));
        noray::lay_environment(&mut settings, &of_noray)?;
        let ignored = settings.lay_environment(environment)?;
        for option in OPTIONS {
            if let Some(values) = matches.get_many::<String>(option.name) {
                settings.set(option, values.cloned().collect(), Origin::Flag)?;
            }
        }
        let warnings = ignored
            .into_iter()
            .map(|name| format!("environment variable {name} is no option and is ignored"));
        Config::from_settings(settings, warnings.collect())
    }

    /// The variables that concern us, as text.
    fn own_environment(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let own = self.environment.iter().filter_map(|(name, value)| {
            let is_ours = |name: &&str| name.starts_with("WAYPOST_") || noray::is_variable(name);
            let name = name.to_str().filter(is_ours)?;
            Some(match value.to_str() {
                Some(value) => Ok((name.to_owned(), value.to_owned())),
                None => Err(ConfigError::new(
                    format!("environment variable {name} is not UTF-8"),
                    "set it to plain text",
                )),
            })
        });
        own.collect()
    }
}

/// The command that makes a credential.
const GEN_CREDENTIAL: &str = "gen-credential";

/// The command line, made from the table of options.
fn command(host: &Host) -> Command {
    let flag = |option: &'static OptionSpec| {
        let several = option.values_max > 1;
        let default = match option.preset {
            Preset::Unset => String::new(),
            _ => format!(" [default: {}]", option.default_values(host).join(", ")),
        };
        // A default that the help line words itself is better than this host's figure.
        let default = if option.help.contains("[default") {
            String::new()
        } else {
            default
        };
        Arg::new(option.name)
            .long(option.name)
            .value_name(option.value)
            .help(format!("{}{default}", option.help))
            .action(if several {
                ArgAction::Append
            } else {
                ArgAction::Set
            })
            .global(true)
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .help(help)
            .action(ArgAction::SetTrue)
            .global(true)
    };
    Command::new("waypost-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Brings two players together: rendezvous, hole punching and relay")
        .after_help(
            "Every option is also a key of the --config file (max_sessions) and an environment variable\n\
             (WAYPOST_MAX_SESSIONS). Order: default < file < environment < flag.\n\
             SIGTERM drains, then stops; a second one stops now; SIGHUP reloads.",
        )
        .arg(
            Arg::new(CONFIG_FILE.name)
                .long(CONFIG_FILE.name)
                .value_name(CONFIG_FILE.value)
                .help(CONFIG_FILE.help)
                .value_parser(clap::value_parser!(PathBuf))
                .global(true),
        )
        .args(OPTIONS.iter().map(flag))
        .arg(switch("print-config", "Print the effective values with their origin, secrets masked"))
        .arg(switch("check-config", "Only say whether the configuration is valid"))
        .subcommand(Command::new("doctor").about("Say in words what this host allows"))
        .subcommand(
            Command::new(GEN_CREDENTIAL)
                .about("Print a time-limited credential under --auth-secret")
                .arg(
                    Arg::new("name")
                        .value_name("USER")
                        .help("Whom it is for")
                        .default_value("player"),
                )
                .arg(
                    Arg::new("valid-secs")
                        .long("valid-secs")
                        .value_name("SECONDS")
                        .help("How long it is good")
                        .value_parser(clap::value_parser!(u64).range(1..=31_536_000))
                        .default_value("86400"),
                ),
        )
}

/// clap's error as ours. Its own rendering takes several lines.
fn in_one_line(error: &clap::Error) -> ConfigError {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let argument = text(ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with("--") => {
            let typed = argument.split('=').next().unwrap_or_default();
            unknown_key(&format!("option {typed}"), typed, |option| {
                format!("--{}", option.name)
            })
        }
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => {
            let typed = format!("{argument}{}", text(ContextKind::InvalidSubcommand));
            ConfigError::new(
                format!("unknown argument `{typed}`"),
                "options begin with --, the commands are `doctor` and `gen-credential`; see --help",
            )
        }
        ErrorKind::InvalidValue | ErrorKind::NoEquals => ConfigError::new(
            format!("option {argument} lacks its value"),
            "write it behind the option",
        ),
        ErrorKind::ArgumentConflict => {
            ConfigError::new(format!("option {argument} is there twice"), "give it once")
        }
        _ => {
            let rendered = error.to_string();
            let first = rendered.lines().next().unwrap_or_default();
            ConfigError::new(first.trim_start_matches("error: "), "see --help")
        }
    }
}

fn unreadable(path: &std::path::Path, error: &io::Error) -> ConfigError {
    ConfigError::new(
        format!("config file {} cannot be read ({error})", path.display()),
        "name a readable file with --config",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::{ExternalIp, IoChoice, LogFormat};

    fn sources(arguments: &[&str], environment: &[(&str, &str)]) -> Sources {
        let arguments = ["waypost-server"].iter().chain(arguments);
        let environment = environment.iter();
        Sources {
            arguments: arguments.map(OsString::from).collect(),
            environment: environment
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            host: Host {
                core_count: 2,
                has_ipv6: true,
                state_dir: "/state".into(),
            },
        }
    }

    fn config(arguments: &[&str]) -> Config {
        match sources(arguments, &[]).invocation().unwrap() {
            Invocation::Serve(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(arguments: &[&str]) -> String {
        let error = sources(arguments, &[])
            .invocation()
            .unwrap_err()
            .to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.starts_with("waypost-server: "), "{error}");
        error
    }

    #[test]
    fn no_argument_at_all_is_a_useful_server() {
        let config = config(&[]);
        let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["0.0.0.0:3478", "[::]:3478"]);
        assert_eq!(config.probe_port, 3479);
        assert_eq!(config.admin, Some("127.0.0.1:9478".parse().unwrap()));
        assert_eq!(config.shard_count, 2);
        assert_eq!(config.io, IoChoice::Auto);
        assert_eq!(config.log_format, LogFormat::Auto);
        assert_eq!(config.secret_file, PathBuf::from("/state/secret"));
        assert!(config.open_rendezvous && config.pin && !config.secret_file_chosen);
        assert!(config.auth_secrets.is_empty() && config.warnings.is_empty());
        assert_eq!(config.per_shard(config.sessions_max), 32768);
    }

    #[test]
    fn a_host_without_ipv6_just_lacks_that_default() {
        let mut sources = sources(&[], &[]);
        sources.host.has_ipv6 = false;
        let config = sources.reload().unwrap();
        assert_eq!(config.listen, ["0.0.0.0:3478".parse().unwrap()]);
    }

    #[test]
    fn flags_beat_environment_and_environment_beats_the_file() {
        let file = std::env::temp_dir().join(format!("waypost-layers-{}.toml", std::process::id()));
        std::fs::write(&file, "shards = 4\nmax_members = 100\nprobe_port = 0\n").unwrap();
        let path = file.to_str().unwrap();
        let environment = [
            ("WAYPOST_CONFIG", path),
            ("WAYPOST_SHARDS", "5"),
            ("WAYPOST_MAX_MEMBERS", "200"),
        ];
        let config = sources(&["--shards", "6"], &environment).reload().unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(
            (config.shard_count, config.members_max, config.probe_port),
            (6, 200, 0)
        );
        assert_eq!(config.settings.get("shards").origin, Origin::Flag);
        assert_eq!(
            config.settings.get("max-members").origin,
            Origin::Environment
        );
        assert_eq!(config.settings.get("probe-port").origin, Origin::File);
    }

    #[test]
    fn what_cannot_be_used_is_one_line_with_the_remedy() {
        for (arguments, part) in [
            (&["--listn", "x"][..], "did you mean `--listen`?"),
            (
                &["--listen=127.0.0.1"],
                "`127.0.0.1` (flag, --listen) is not an address and a port",
            ),
            (&["--listen=127.0.0.1:65536"], "the port at most 65535"),
            (&["--listen"], "lacks its value"),
            (
                &["--listen=1.1.1.1:1", "--listen=1.1.1.1:1"],
                "is there twice: remove one",
            ),
            (
                &["--listen=1.1.1.1:3479"],
                "probe-port 3479 is the port of --listen",
            ),
            (&["--shards=0"], "give a whole number from 1 to 1024"),
            (&["--shards=+2"], "give a whole number from 1 to 1024"),
            (&["--shards=2", "--shards=3"], "--shards"),
            (&["--io=urnig"], "did you mean `uring`?"),
            (&["--pin=yes"], "give one of true, false"),
            (
                &["--admin=0.0.0.0:9478"],
                "has no token: give --admin-token-file",
            ),
            (
                &["--open-rendezvous=false", "--admin=off"],
                "nothing can admit anybody",
            ),
            (&["--external-ip=1.2.3.4/::1"], "mixes IPv4 and IPv6"),
            (
                &["--external-ip=1.2.3.4", "--external-ip=1.2.3.5"],
                "that has one already",
            ),
            (&["--external-ip=0.0.0.0"], "cannot be told to clients"),
            (&["--seat-hold-secs=5"], "is shorter than keepalive-secs 15"),
            (
                &["--config=/nonexistent/w.toml"],
                "name a readable file with --config",
            ),
            (&["--state-dir="], "is empty: give a value or leave it out"),
            (&["serve"], "the commands are `doctor` and `gen-credential`"),
            (&["--tls-listen=1.1.1.1:1"], "but tls-cert is not given"),
            (&["--tls-cert=/c.pem"], "but tls-key is not given"),
            (
                &[
                    "--tls-cert=/nonexistent/c.pem",
                    "--tls-key=/nonexistent/k.pem",
                ],
                "cannot be read",
            ),
            (&["--auth-secret-file=/nonexistent"], "cannot be read"),
        ] {
            let line = refusal(arguments);
            assert!(line.contains(part), "{arguments:?} gave {line}");
        }
    }

    #[test]
    fn a_bad_secret_is_never_shown() {
        let secrets = [
            "--auth-secret=alpha-1",
            "--auth-secret=beta-2",
            "--auth-secret=gamma-3",
        ];
        let line = refusal(&secrets);
        assert!(line.contains("give at most 2"), "{line}");
        for secret in ["alpha", "beta", "gamma"] {
            assert!(!line.contains(secret), "{line}");
        }
        let config = config(&["--auth-secret=alpha-1", "--admin-token=omega-9"]);
        let shown = format!("{config:?}");
        assert!(
            !shown.contains("alpha") && !shown.contains("omega"),
            "{shown}"
        );
        assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    }

    #[test]
    fn secrets_come_from_files_too_and_the_stronger_layer_wins() {
        let file = std::env::temp_dir().join(format!("waypost-secret-{}", std::process::id()));
        std::fs::write(&file, "from-a-file-of-its-own\n").unwrap();
        let path = file.to_str().unwrap();
        let both = [
            "--auth-secret=given-directly-here",
            "--auth-secret-file",
            path,
        ];
        let together = sources(&both, &[]).reload().unwrap();
        let layered = sources(&both[..1], &[("WAYPOST_AUTH_SECRET_FILE", path)])
            .reload()
            .unwrap();
        let excess = sources(&["--admin-token=abc", "--admin-token-file", path], &[]).reload();
        std::fs::remove_file(&file).unwrap();
        let texts = |config: &Config| -> Vec<Vec<u8>> {
            config
                .auth_secrets
                .iter()
                .map(|secret| secret.expose().to_vec())
                .collect()
        };
        assert_eq!(
            texts(&together),
            [&b"given-directly-here"[..], b"from-a-file-of-its-own"]
        );
        assert_eq!(texts(&layered), [b"given-directly-here"]);
        let line = excess.unwrap_err().to_string();
        assert!(
            line.contains("admin-token and admin-token-file together hold 2"),
            "{line}"
        );
    }

    #[test]
    fn print_and_check_and_doctor_and_help() {
        let print = |arguments: &[&str]| match sources(arguments, &[]).invocation().unwrap() {
            Invocation::Print(text) => text,
            other => panic!("{other:?}"),
        };
        let printed = print(&["--print-config", "--shards=7", "--state-dir=/s"]);
        assert!(
            printed.contains("shards = 7  # flag, --shards"),
            "{printed}"
        );
        assert!(
            printed.contains("secret_file = \"/s/secret\"  # default"),
            "{printed}"
        );
        assert_eq!(print(&["--check-config"]), "the configuration is valid\n");
        assert!(print(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
        let help = print(&["--help"]);
        for option in OPTIONS {
            assert!(
                help.contains(&format!("--{} <{}>", option.name, option.value)),
                "{help}"
            );
        }
        for arguments in [&["doctor", "--shards=7"], &["--shards=7", "doctor"]] {
            match sources(arguments, &[]).invocation().unwrap() {
                Invocation::Doctor(config) => assert_eq!(config.shard_count, 7),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_external_address_may_stand_for_a_local_one() {
        let config = config(&[
            "--external-ip=203.0.113.5/10.0.0.5",
            "--external-ip=2001:db8::5",
        ]);
        assert_eq!(
            config.external_ip,
            [
                ExternalIp {
                    external: "203.0.113.5".parse().unwrap(),
                    local: Some("10.0.0.5".parse().unwrap()),
                },
                ExternalIp {
                    external: "2001:db8::5".parse().unwrap(),
                    local: None
                },
            ]
        );
    }

    #[test]
    fn options_of_the_relay() {
        let file = std::env::temp_dir().join(format!("waypost-users-{}", std::process::id()));
        std::fs::write(&file, "bob:pass:with:colons\n\n  carol:c  \n").unwrap();
        let config = config(&[
            "--relay-ip=203.0.113.5",
            "--relay-ip=2001:db8::5",
            "--relay-ports=50000-50000",
            "--alternate-ip=203.0.113.6",
            "--alternate-server=203.0.113.7:3478",
            "--alternate-server=[2001:db8::7]:3478",
            "--alternate-tls-server=203.0.113.7:5349",
            "--alternate-domain=turn2.example.org",
            "--turn-host=2001:db8::8",
            "--mobility=false",
            "--user=ann:secret",
            "--user-file",
            file.to_str().unwrap(),
        ]);
        std::fs::remove_file(&file).unwrap();
        let ips: Vec<_> = config.relay_ip.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["203.0.113.5", "2001:db8::5"]);
        assert_eq!(config.relay_ports, 50_000..=50_000);
        assert_eq!(
            config.alternate_ip,
            ["203.0.113.6".parse::<std::net::IpAddr>().unwrap()]
        );
        assert_eq!(config.alternate_servers.len(), 2);
        assert_eq!(config.alternate_tls_servers.len(), 1);
        let domain = config.alternate_domain.as_deref();
        assert_eq!(domain, Some("turn2.example.org"));
        assert_eq!(config.turn_host.as_deref(), Some("[2001:db8::8]"));
        assert!(!config.mobility);
        let users = config
            .users
            .iter()
            .map(|user| (user.name.as_str(), user.password_text()));
        let users: Vec<_> = users.collect();
        let password = str::to_owned;
        assert_eq!(
            users,
            [
                ("ann", password("secret")),
                ("bob", password("pass:with:colons")),
                ("carol", password("c"))
            ]
        );
        assert!(
            !format!("{config:?}").contains("secret)"),
            "no password is shown"
        );
    }

    #[test]
    fn options_of_the_relay_that_cannot_be_used() {
        let long = format!("--user={}:p", "n".repeat(509));
        let realm = format!("--realm={}", "r".repeat(128));
        for (arguments, part) in [
            (&["--relay-ip=0.0.0.0"][..], "cannot be told to clients"),
            (&["--relay-ip=224.0.0.1"], "cannot be told to clients"),
            (&["--relay-ip=here"], "is not an IP address"),
            (
                &["--relay-ip=1.1.1.1", "--relay-ip=1.1.1.2"],
                "the second of its family",
            ),
            (
                &["--alternate-ip=1.1.1.1", "--alternate-ip=1.1.1.2"],
                "the second of its family",
            ),
            (
                &["--listen=1.1.1.1:1", "--alternate-ip=1.1.1.1"],
                "is second to no address",
            ),
            (
                &["--listen=1.1.1.1:1", "--alternate-ip=::2"],
                "is second to no address",
            ),
            (&["--relay-ports=2-1"], "the lower port first"),
            (&["--relay-ports=0-9"], "is not a range of ports"),
            (&["--relay-ports=9"], "is not a range of ports"),
            (&["--relay-ports=1-65536"], "is not a range of ports"),
            (&["--user=ann"], "has no password"),
            (&["--user=ann:"], "an empty or overlong part"),
            (&["--user=:p"], "an empty or overlong part"),
            (&[&long], "an empty or overlong part"),
            (
                &["--user=ann:one-word", "--user=ann:other"],
                "names somebody twice",
            ),
            (&["--user-file=/nonexistent"], "cannot be read"),
            (&[&realm], "is not a realm"),
            (&["--realm=a\"b"], "is not a realm"),
            (&["--allow-peer=10.0.0.0/33"], "is not a range of addresses"),
            (
                &["--alternate-server=1.1.1.1"],
                "is not an address and a port",
            ),
            (
                &["--alternate-server=1.1.1.1:0"],
                "cannot be told to clients",
            ),
            (
                &[
                    "--alternate-server=1.1.1.1:1",
                    "--alternate-server=1.1.1.2:1",
                ],
                "the second of its family",
            ),
            (
                &["--alternate-tls-server=0.0.0.0:5349"],
                "cannot be told to clients",
            ),
            (
                &["--alternate-domain=turn2.example.org"],
                "give --alternate-tls-server too",
            ),
            (&["--alternate-domain=203.0.113.7"], "is not a DNS name"),
            (&["--turn-host=turn:example.org"], "is not a host"),
            (&["--mobility=maybe"], "give one of true, false"),
        ] {
            let line = refusal(arguments);
            assert!(line.contains(part), "{arguments:?} gave {line}");
            assert!(!line.contains("one-word"), "{line}");
        }
    }

    #[test]
    fn gen_credential_takes_a_user_and_a_time() {
        let asked = |arguments: &[&str]| match sources(arguments, &[]).invocation().unwrap() {
            Invocation::GenCredential(config, user, secs) => {
                (config.auth_secrets.len(), user, secs)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(asked(&["gen-credential"]), (0, "player".to_owned(), 86_400));
        let full = [
            "gen-credential",
            "ann",
            "--valid-secs",
            "60",
            "--auth-secret=north-and-south",
        ];
        assert_eq!(asked(&full), (1, "ann".to_owned(), 60));
        for secs in ["0", "31536001", "x"] {
            let line = refusal(&["gen-credential", "--valid-secs", secs]);
            assert!(line.contains("--valid-secs"), "{line}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        command(&sources(&[], &[]).host).debug_assert();
    }
}
