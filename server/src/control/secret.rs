//! Secret bytes: kept out of logs, read from files, made at first start. What they seal is decided
//! by whoever uses them.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use subtle::ConstantTimeEq;

use super::config::{Config, ConfigError};

/// Longest file that is taken for a secret, in bytes.
const FILE_BYTES_MAX: u64 = 4096;

/// Bytes that are never shown. Cloning shares them.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Takes these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Reads a file that holds the secret and perhaps a line break after it. The error is the
    /// middle of a sentence: "cannot be read (…)".
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let bytes = read_short(path).map_err(|error| format!("cannot be read ({error})"))?;
        match bytes.trim_ascii_end() {
            [] => Err("is an empty file".to_owned()),
            bytes => Ok(Self::new(bytes)),
        }
    }

    /// The bytes, for the one place that uses them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether these are the same bytes, in a time that does not depend on where they differ.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.ct_eq(candidate).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// The 32 bytes that seal tickets and nonces, and how they came to be.
#[derive(Debug)]
pub struct ServerSecret {
    /// The bytes; keys for each use are to be derived from them.
    pub secret: Secret,
    /// Where they came from.
    pub source: SecretSource,
}

/// Where the server's secret came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// The file was there.
    Loaded,
    /// The file was made now, mode 0600.
    Created,
    /// No file could be made in the default place, for this reason: tickets end with the process.
    MemoryOnly(String),
}

impl ServerSecret {
    /// Loads the secret that `config` names, or makes it. Fails when a file is there but unusable,
    /// or when the operator chose the place and it cannot be written.
    pub fn load_or_create(config: &Config) -> Result<Self, ConfigError> {
        let path = &config.secret_file;
        match load(path)? {
            Some(secret) => Ok(Self {
                secret,
                source: SecretSource::Loaded,
            }),
            None => match create(path) {
                // Another process may have made it meanwhile, so what counts is what is there.
                Ok(()) => match load(path)? {
                    Some(secret) => Ok(Self {
                        secret,
                        source: SecretSource::Created,
                    }),
                    None => Err(unwritable(path, "it vanished")),
                },
                Err(error) if config.secret_file_chosen => {
                    Err(unwritable(path, &error.to_string()))
                }
                Err(error) => Ok(Self {
                    secret: Secret::new(
                        &random_bytes().map_err(|error| unwritable(path, &error.to_string()))?,
                    ),
                    source: SecretSource::MemoryOnly(format!("{}: {error}", path.display())),
                }),
            },
        }
    }
}

fn load(path: &Path) -> Result<Option<Secret>, ConfigError> {
    let shown = path.display();
    let text = match read_short(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(ConfigError::new(
                format!("secret file {shown} cannot be read ({error})"),
                "let the user of the server read it, or choose another with --secret-file",
            ));
        }
    };
    let wrong = || {
        ConfigError::new(
            format!("secret file {shown} does not hold 64 hexadecimal digits"),
            format!("make it anew with `openssl rand -hex 32 > {shown}`"),
        )
    };
    let digits = text.trim_ascii();
    let nibble = |digit: &u8| (*digit as char).to_digit(16).map(|value| value as u8);
    let nibbles: Option<Vec<u8>> = digits.iter().map(nibble).collect();
    let nibbles = nibbles
        .filter(|nibbles| nibbles.len() == 64)
        .ok_or_else(wrong)?;
    let bytes: Vec<u8> = nibbles
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    Ok(Some(Secret::new(&bytes)))
}

/// Writes a new secret to a private file beside `path` and links it there, so that nobody ever
/// reads half of it and a file that appears meanwhile is kept.
fn create(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = directory {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let digits: String = random_bytes()?
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut draft_name = path.file_name().unwrap_or_default().to_owned();
    draft_name.push(format!(".{}.new", std::process::id()));
    let draft = path.with_file_name(draft_name);
    let _ = fs::remove_file(&draft);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        writeln!(file, "{digits}")?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    let _ = fs::remove_file(&draft);
    written
}

fn random_bytes() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn read_short(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(io::Error::other(format!(
            "longer than {FILE_BYTES_MAX} bytes"
        ))),
        false => Ok(bytes),
    }
}

fn unwritable(path: &Path, reason: &str) -> ConfigError {
    ConfigError::new(
        format!("secret file {} cannot be made ({reason})", path.display()),
        "let the user of the server write there, or choose another place with --state-dir or --secret-file",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::Sources;
    use std::path::PathBuf;

    /// A directory of the test's own that goes away with it.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("waypost-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn config(file: &Path) -> Config {
        let mut sources = Sources::of_process();
        sources.environment.clear();
        sources.arguments = vec!["waypost-server".into(), "--secret-file".into(), file.into()];
        sources.reload().unwrap()
    }

    #[test]
    fn made_once_then_found_again_and_private() {
        let directory = Directory::new("secret-made");
        let config = config(&directory.0.join("deep/secret"));
        let made = ServerSecret::load_or_create(&config).unwrap();
        assert_eq!(made.source, SecretSource::Created);
        assert_eq!(made.secret.expose().len(), 32);
        let found = ServerSecret::load_or_create(&config).unwrap();
        assert_eq!(found.source, SecretSource::Loaded);
        assert!(found.secret.matches(made.secret.expose()));
        let mode = fs::metadata(&config.secret_file)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let beside = fs::read_dir(config.secret_file.parent().unwrap()).unwrap();
        assert_eq!(beside.count(), 1, "the draft is gone");
    }

    #[test]
    fn a_file_with_something_else_in_it_is_refused_and_kept() {
        let directory = Directory::new("secret-wrong");
        let config = config(&directory.0.join("secret"));
        for text in ["", "abc", &"z".repeat(64), &"a".repeat(5000)] {
            fs::write(&config.secret_file, text).unwrap();
            let line = ServerSecret::load_or_create(&config)
                .unwrap_err()
                .to_string();
            assert!(line.contains("secret file"), "{line}");
            assert_eq!(fs::read_to_string(&config.secret_file).unwrap(), text);
        }
        fs::write(&config.secret_file, "aB".repeat(32)).unwrap();
        let found = ServerSecret::load_or_create(&config).unwrap();
        assert_eq!(found.secret.expose(), [0xab; 32]);
    }

    #[test]
    fn a_place_that_cannot_be_written_ends_the_start_only_when_it_was_chosen() {
        let mut config = config(Path::new("/proc/nowhere/secret"));
        let line = ServerSecret::load_or_create(&config)
            .unwrap_err()
            .to_string();
        assert!(
            line.contains("choose another place with --state-dir"),
            "{line}"
        );
        config.secret_file_chosen = false;
        let made = ServerSecret::load_or_create(&config).unwrap();
        assert!(matches!(made.source, SecretSource::MemoryOnly(_)));
    }

    #[test]
    fn a_secret_shows_nothing_and_compares_whole() {
        let secret = Secret::new(b"open sesame");
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        assert!(secret.matches(b"open sesame"));
        assert!(!secret.matches(b"open sesamf") && !secret.matches(b"open"));
    }
}
