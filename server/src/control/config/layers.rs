//! Four layers of text, the later over the earlier: default, file, environment, flag. Every value
//! remembers which layer it came from. What the text means is decided elsewhere.

use std::{collections::BTreeMap, fmt, path::Path};

use super::{
    error::ConfigError,
    host::Host,
    options::{CONFIG_FILE, OPTIONS, OptionSpec, did_you_mean, option},
};

/// The layer that a value came from, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built in.
    Default,
    /// The `--config` file.
    File,
    /// A `WAYPOST_` variable.
    Environment,
    /// The command line.
    Flag,
}

impl Origin {
    /// The layer in words, for this option.
    pub fn describe(self, option: &OptionSpec) -> String {
        match self {
            Origin::Default => "default".to_owned(),
            Origin::File => format!("file, {}", option.key()),
            Origin::Environment => format!("environment, {}", option.variable()),
            Origin::Flag => format!("flag, --{}", option.name),
        }
    }
}

/// The text of one option and where it came from.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// One value, or several for a repeatable option; none when unset.
    pub values: Vec<String>,
    /// The layer that won.
    pub origin: Origin,
}

/// The effective text of every option.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings(BTreeMap<&'static str, Setting>);

impl Settings {
    /// The default layer alone.
    pub fn defaults(host: &Host) -> Self {
        let layer = OPTIONS.iter().map(|option| {
            let values = option.default_values(host);
            let origin = Origin::Default;
            (option.name, Setting { values, origin })
        });
        Self(layer.collect())
    }

    /// The setting of an option in the table.
    pub fn get(&self, name: &str) -> &Setting {
        &self.0[option(name).name]
    }

    /// Lays `values` over what the option had. Too many of them is an error.
    pub fn set(
        &mut self,
        option: &'static OptionSpec,
        values: Vec<String>,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        if values.len() > option.values_max {
            return Err(ConfigError::new(
                format!(
                    "{} values of {} ({})",
                    values.len(),
                    option.name,
                    origin.describe(option)
                ),
                format!("give at most {}", option.values_max),
            ));
        }
        self.0.insert(option.name, Setting { values, origin });
        Ok(())
    }

    /// Lays the text of a TOML file over the defaults; `path` is only for messages.
    pub fn lay_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let shown = path.display();
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.get(..start).unwrap_or("").matches('\n').count() + 1;
            ConfigError::new(
                format!("{shown} is not TOML at line {line} ({})", error.message()),
                "correct that line; keys are `name = value`, text in quotes",
            )
        })?;
        for (key, value) in table {
            let Some(option) = OPTIONS.iter().find(|option| option.key() == key) else {
                return Err(unknown_key(
                    &format!("key `{key}` in {shown}"),
                    &key,
                    OptionSpec::key,
                ));
            };
            let values = match value {
                toml::Value::Array(items) => {
                    items.into_iter().map(|item| scalar(option, item)).collect()
                }
                single => scalar(option, single).map(|value| vec![value]),
            };
            self.set(option, values?, Origin::File)?;
        }
        Ok(())
    }

    /// Lays the `WAYPOST_` variables over that. Several values are separated by commas, except in
    /// secrets. A name that is nearly an option is an error; any other is returned, to be warned
    /// of, because orchestrators put variables of that form into every container.
    pub fn lay_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<String>, ConfigError> {
        let mut ignored = Vec::new();
        for (name, value) in variables {
            // Compose files pass on variables that nobody set as empty ones.
            let unset = value.is_empty();
            if unset || !name.starts_with("WAYPOST_") || name == CONFIG_FILE.variable() {
                continue;
            }
            if let Some(option) = OPTIONS.iter().find(|option| option.variable() == name) {
                let several = option.values_max > 1 && !option.secret;
                let values = match several {
                    true => value
                        .split(',')
                        .map(|part| part.trim().to_owned())
                        .collect(),
                    false => vec![value],
                };
                self.set(option, values, Origin::Environment)?;
            } else if did_you_mean(&name, OPTIONS.iter().map(OptionSpec::variable)).is_some() {
                let what = format!("environment variable `{name}`");
                return Err(unknown_key(&what, &name, OptionSpec::variable));
            } else {
                ignored.push(name);
            }
        }
        Ok(ignored)
    }

    /// The options whose text differs between two sets.
    pub fn changed<'a>(&'a self, new: &'a Settings) -> impl Iterator<Item = &'static OptionSpec> {
        OPTIONS
            .iter()
            .filter(|option| self.0[option.name].values != new.0[option.name].values)
    }
}

/// A TOML table of the effective values, the origin of each behind it, secrets masked. Options that
/// are unset are left out.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for option in OPTIONS {
            let Setting { values, origin } = &self.0[option.name];
            let shown = |value: &String| match (option.secret, value.as_str()) {
                (true, _) => toml::Value::from("***").to_string(),
                (false, "true" | "false") => value.clone(),
                _ if value.parse::<u64>().is_ok() => value.clone(),
                _ => toml::Value::from(value.as_str()).to_string(),
            };
            let values: Vec<_> = values.iter().map(shown).collect();
            let text = match values.as_slice() {
                [] => continue,
                [single] if option.values_max == 1 => single.clone(),
                several => format!("[{}]", several.join(", ")),
            };
            writeln!(
                f,
                "{} = {text}  # {}",
                option.key(),
                origin.describe(option)
            )?;
        }
        Ok(())
    }
}

/// As `Display`: secrets must not leave by a debug line either.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The line for a name that is not in the table; `form` is how options are spelled there.
pub fn unknown_key(what: &str, typed: &str, form: impl Fn(&OptionSpec) -> String) -> ConfigError {
    let wrong = format!("unknown {what}");
    // A hyphen for an underscore, or the other way round, is the commonest slip.
    let respelled = |name: &String| name.replace('-', "_") == typed.replace('-', "_");
    let mut names = OPTIONS.iter().map(&form);
    let near = names
        .find(respelled)
        .or_else(|| did_you_mean(typed, OPTIONS.iter().map(&form)));
    match near {
        Some(near) => ConfigError::new(wrong, format!("did you mean `{near}`?")),
        None => ConfigError::new(wrong, "remove it; --help lists every option"),
    }
}

fn scalar(option: &OptionSpec, value: toml::Value) -> Result<String, ConfigError> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(truth) => Ok(truth.to_string()),
        other => Err(ConfigError::new(
            format!(
                "key `{}` in the file holds a {}",
                option.key(),
                other.type_str()
            ),
            format!("give it as {}", option.value),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Settings {
        Settings::defaults(&Host {
            core_count: 3,
            has_ipv6: true,
            state_dir: "/state".into(),
        })
    }

    fn lay_file(text: &str) -> Result<Settings, String> {
        let mut settings = defaults();
        let laid = settings.lay_file(Path::new("w.toml"), text);
        laid.map(|()| settings).map_err(|error| error.to_string())
    }

    fn variable(name: &str, value: &str) -> [(String, String); 1] {
        [(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn each_layer_lies_over_the_one_before_and_is_remembered() {
        let mut settings = defaults();
        let now = |settings: &Settings| {
            let setting = settings.get("shards");
            (setting.values.join(","), setting.origin)
        };
        assert_eq!(now(&settings), ("3".into(), Origin::Default));
        settings
            .lay_file(Path::new("w.toml"), "shards = 4")
            .unwrap();
        assert_eq!(now(&settings), ("4".into(), Origin::File));
        settings
            .lay_environment(variable("WAYPOST_SHARDS", "5"))
            .unwrap();
        assert_eq!(now(&settings), ("5".into(), Origin::Environment));
        settings
            .set(option("shards"), vec!["6".into()], Origin::Flag)
            .unwrap();
        assert_eq!(now(&settings), ("6".into(), Origin::Flag));
    }

    #[test]
    fn a_layer_replaces_all_values_of_a_repeatable_option() {
        let mut settings = lay_file("listen = ['1.2.3.4:1', '1.2.3.4:2']").unwrap();
        assert_eq!(settings.get("listen").values.len(), 2);
        let one = variable("WAYPOST_LISTEN", "127.0.0.1:9, [::1]:9");
        settings.lay_environment(one).unwrap();
        assert_eq!(settings.get("listen").values, ["127.0.0.1:9", "[::1]:9"]);
    }

    #[test]
    fn a_slip_in_a_key_is_pointed_out() {
        let error = lay_file("max_sesions = 5").unwrap_err();
        assert_eq!(
            error,
            "waypost-server: unknown key `max_sesions` in w.toml: did you mean `max_sessions`?"
        );
        let error = lay_file("max-sessions = 5").unwrap_err();
        assert!(error.ends_with("did you mean `max_sessions`?"), "{error}");
        let error = lay_file("colour = 'red'").unwrap_err();
        assert!(
            error.ends_with("remove it; --help lists every option"),
            "{error}"
        );
        let error = lay_file("config = 'other.toml'").unwrap_err();
        assert!(error.contains("unknown key `config`"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_toml_names_the_line() {
        let error = lay_file("shards = 2\n\nlisten = [\n").unwrap_err();
        assert!(error.contains("w.toml is not TOML at line"), "{error}");
        assert_eq!(error.lines().count(), 1);
        let error = lay_file("[shards]\ncount = 1").unwrap_err();
        assert!(
            error.contains("key `shards` in the file holds a table"),
            "{error}"
        );
    }

    #[test]
    fn a_near_miss_in_the_environment_is_an_error_and_a_stranger_is_not() {
        let mut settings = defaults();
        let error = settings
            .lay_environment(variable("WAYPOST_LISTN", "x"))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("did you mean `WAYPOST_LISTEN`?"),
            "{error}"
        );
        let service = variable("WAYPOST_SERVICE_PORT_STUN", "3478");
        let ignored = settings.lay_environment(service).unwrap();
        assert_eq!(ignored, ["WAYPOST_SERVICE_PORT_STUN"]);
        let empty = variable("WAYPOST_SHARDS", "");
        settings.lay_environment(empty).unwrap();
        assert_eq!(settings.get("shards").origin, Origin::Default);
    }

    #[test]
    fn too_many_values_are_refused_without_showing_them() {
        let error = lay_file("auth_secret = ['one-secret', 'two', 'three']").unwrap_err();
        assert!(error.contains("give at most 2"), "{error}");
        assert!(!error.contains("one-secret"), "{error}");
    }

    #[test]
    fn what_is_printed_is_toml_that_reads_back_with_secrets_masked() {
        let mut settings =
            lay_file("auth_secret = 'hush-hush'\nlog_level = 'debug'\npin = false").unwrap();
        let flags = vec!["127.0.0.1:1".to_owned()];
        settings.set(option("listen"), flags, Origin::Flag).unwrap();
        let printed = settings.to_string();
        assert!(!printed.contains("hush"), "{printed}");
        assert!(!format!("{settings:?}").contains("hush"));
        assert!(
            printed.contains("auth_secret = [\"***\"]  # file, auth_secret\n"),
            "{printed}"
        );
        assert!(
            printed.contains("listen = [\"127.0.0.1:1\"]  # flag, --listen\n"),
            "{printed}"
        );
        assert!(printed.contains("pin = false  # file, pin\n"), "{printed}");
        assert!(printed.contains("shards = 3  # default\n"), "{printed}");
        assert!(!printed.contains("external_ip"), "{printed}");
        let again = lay_file(&printed).unwrap();
        let differing: Vec<_> = settings.changed(&again).map(|option| option.name).collect();
        assert_eq!(differing, ["auth-secret"]);
    }
}
