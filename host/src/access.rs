//! The token of a host that has none configured: made at its start, and found by the commands of
//! the same user.
//!
//! The token is a file in the data folder. A running host also leaves a note for its user's
//! commands, named after the address: the data folder of a host is nothing that a command with
//! `--url` knows. The note holds no token, only the path of its file, and counts only while the
//! host lives, so that no token goes to the next program that listens there.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data_dir::{self, DataDir, TOKEN_UNFINISHED};
use crate::small_file::read_regular_text;

/// Prefix of every token, so that scanners for leaked secrets find it.
const PREFIX: &str = "foldstream_";
/// The folder of the notes, within one of the user's own.
const NOTES: &str = "foldstream/hosts";
/// Names this start of this machine: a home folder may be shared by several.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

pub(crate) fn new_token() -> String {
    let random: [u8; 32] = rand::random();
    // A value that begins with a hyphen would be taken for an option.
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random))
}

/// Gives the settings of a host the token of its data folder, which is made if it is missing;
/// returns its file. None if the settings have a token, or want none.
pub(crate) fn complete(config: &mut Config) -> Result<Option<PathBuf>, data_dir::Error> {
    if !config.serve.makes_token() {
        return Ok(None);
    }
    // Asked before the token is set: with tokens the default is another.
    let anonymous = config.serve.anonymous();
    let file = DataDir::claim(&config.data_dir)?.token();
    if let Err(error) = ensure(&file) {
        // What is full or read-only serves what it has; nobody can change it until there is a
        // token.
        tracing::warn!(
            file = %file.display(),
            %error,
            "cannot make the token of this host; no request may change anything"
        );
        config.serve.token = Some(new_token().into());
        config.serve.anonymous = Some(anonymous);
        return Ok(None);
    }
    let file = std::path::absolute(&file).unwrap_or(file);
    config.serve.token_file = Some(file.clone());
    config.serve.anonymous = Some(anonymous);
    Ok(Some(file))
}

/// Makes the file of a token, unless there is one.
fn ensure(file: &Path) -> io::Result<()> {
    match read_regular_text(file) {
        Ok(text) if !text.trim().is_empty() => {
            // Somebody may have changed the mode since.
            return fs::set_permissions(file, Permissions::from_mode(0o600));
        }
        // An empty file is left by a write to a full disk.
        Ok(_) => fs::remove_file(file)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    // Its mode is 0600 from the first byte on.
    let mut new = tempfile::Builder::new()
        .prefix(TOKEN_UNFINISHED)
        .tempfile_in(folder)?;
    writeln!(new, "{}", new_token())?;
    new.as_file().sync_all()?;
    match new.persist_noclobber(file) {
        // Another start in the same folder was faster; its token is as good.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
        Ok(_) => File::open(folder)?.sync_all(),
    }
}

/// The token in the data folder of a host with these settings, if it makes one and this user may
/// read it.
pub(crate) fn token_of(config: &Config) -> Option<String> {
    let file = config
        .serve
        .makes_token()
        .then(|| DataDir::token_in(&config.data_dir))?;
    token_in(&file)
}

fn token_in(file: &Path) -> Option<String> {
    let text = read_regular_text(file).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

/// What a note says.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    token_file: PathBuf,
    boot: String,
}

/// A note for the commands of this user, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Note {
    path: PathBuf,
    /// Locked, so that commands see that the host lives.
    _file: File,
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Leaves a note of the host at an address; none if this user has no folder for it. The address is
/// bound, so whatever note there is was left by a host that is no more.
pub(crate) fn announce(address: SocketAddr, token_file: &Path) -> Option<Note> {
    let content = Content {
        token_file: token_file.to_owned(),
        boot: boot(),
    };
    let text = serde_json::to_string(&content).ok()?;
    let name = name_of(reachable(address.ip()), address.port());
    folders()
        .into_iter()
        .find_map(|folder| leave(&folder, &name, &text).ok())
}

fn leave(folder: &Path, name: &str, text: &str) -> io::Result<Note> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut new = tempfile::Builder::new().prefix(".").tempfile_in(folder)?;
    new.write_all(text.as_bytes())?;
    // Before it has its name: a note that can be found is always locked.
    flock(new.as_file(), FlockOperation::NonBlockingLockExclusive)?;
    let path = folder.join(name);
    let file = new.persist(&path).map_err(|error| error.error)?;
    Ok(Note { path, _file: file })
}

/// The token of the running host of this user at an address of this machine; none if there is no
/// such host, or it has its tokens configured. `host` is a name or an address as a URL has it.
pub(crate) fn find(host: &str, port: u16) -> Option<String> {
    let addresses = match host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
    {
        Ok(ip) if ip.to_canonical().is_loopback() => vec![ip.to_canonical()],
        // A name resolves to both; the host listens on one of them.
        Err(_) if host == "localhost" => {
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        }
        _ => return None,
    };
    let names: Vec<String> = addresses.into_iter().map(|ip| name_of(ip, port)).collect();
    let found = folders().into_iter().flat_map(|folder| {
        names
            .iter()
            .map(move |name| folder.join(name))
            .collect::<Vec<_>>()
    });
    found
        .into_iter()
        .find_map(|path| token_in(&read_note(&path)?.token_file))
}

/// A note that only this user can have written, of a host that lives.
fn read_note(path: &Path) -> Option<Content> {
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let is_own =
        metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    // A lock that can be had is one that no host holds.
    let is_held = flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    if !is_own || !metadata.is_file() || !is_held {
        return None;
    }
    let content: Content = serde_json::from_str(&read_regular_text(path).ok()?).ok()?;
    (content.boot == boot()).then_some(content)
}

fn boot() -> String {
    fs::read_to_string(BOOT)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// The address at which this machine reaches a host that listens on one.
pub(crate) fn reachable(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

fn name_of(ip: IpAddr, port: u16) -> String {
    format!("{ip}-{port}").replace(':', "_")
}

/// Where this user's notes may be: what ends with the session is better, but a session over SSH or
/// of cron has none.
fn folders() -> Vec<PathBuf> {
    let state = user_folder("XDG_STATE_HOME", ".local/state");
    [named("XDG_RUNTIME_DIR"), state]
        .into_iter()
        .flatten()
        .map(|folder| folder.join(NOTES))
        .collect()
}

/// A folder of this user: what the variable names, or that place in the home folder.
pub(crate) fn user_folder(variable: &str, in_home: &str) -> Option<PathBuf> {
    named(variable).or_else(|| Some(named("HOME")?.join(in_home)))
}

/// The folder that a variable names. Paths that are not absolute count for nothing.
fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Anonymous, Serve};

    fn config(folder: &Path) -> Config {
        Config {
            data_dir: folder.join("data"),
            ..Config::default()
        }
    }

    #[test]
    fn a_token_is_made_once_and_again_when_it_was_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let start = || {
            let mut config = config(folder.path());
            let file = complete(&mut config)
                .expect("it can be made")
                .expect("it was made");
            (
                file.clone(),
                config
                    .serve
                    .bearer_token()
                    .expect("readable")
                    .expect("there"),
            )
        };
        let (file, first) = start();
        assert_eq!(file.metadata().expect("there").mode() & 0o777, 0o600);
        assert!(first.starts_with(PREFIX) && first.len() > 40, "{first}");
        assert_eq!(start().1, first);
        assert_eq!(token_of(&config(folder.path())), Some(first.clone()));
        for broken in [None, Some("\n")] {
            let before = start().1;
            match broken {
                None => fs::remove_file(&file).expect("removed"),
                Some(text) => fs::write(&file, text).expect("written"),
            }
            assert_ne!(start().1, before, "{broken:?}");
        }
    }

    #[test]
    fn configured_tokens_and_open_hosts_have_none_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let sound = config(folder.path());
        let with = |change: &dyn Fn(&mut Serve)| {
            let mut config = sound.clone();
            change(&mut config.serve);
            complete(&mut config).expect("sound")
        };
        assert_eq!(
            with(&|serve| serve.token = Some("0123456789abcdef".into())),
            None
        );
        assert_eq!(
            with(&|serve| serve.tokens_file = Some("tokens.toml".into())),
            None
        );
        assert_eq!(
            with(&|serve| serve.anonymous = Some(Anonymous::Everything)),
            None
        );
        let beyond = |serve: &mut Serve| serve.listen = "0.0.0.0:0".parse().expect("an address");
        assert_eq!(with(&beyond), None);
        let insecure = |serve: &mut Serve| {
            beyond(serve);
            serve.insecure = true;
        };
        assert_eq!(with(&insecure), None);
        assert!(!sound.data_dir.exists(), "nothing was written");
        assert!(with(&|serve| serve.anonymous = Some(Anonymous::Nothing)).is_some());
    }

    #[test]
    fn a_note_counts_only_while_its_host_lives() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = serde_json::to_string(&Content {
            token_file: "/t".into(),
            boot: boot(),
        })
        .expect("plain data");
        let path = folder.path().join("127.0.0.1-1");
        let note = leave(folder.path(), "127.0.0.1-1", &text).expect("a note");
        assert!(read_note(&path).is_some());
        drop(note);
        assert!(!path.exists());
        // What a killed host left.
        fs::write(&path, &text).expect("written");
        assert!(read_note(&path).is_none());
    }

    #[test]
    fn only_addresses_of_this_machine_are_looked_up() {
        for host in ["example.com", "10.0.0.1", "localhost.example"] {
            assert_eq!(find(host, 7575), None, "{host}");
        }
        assert_eq!(
            reachable("0.0.0.0".parse().expect("an address")).to_string(),
            "127.0.0.1"
        );
        assert_eq!(
            name_of(reachable("::".parse().expect("an address")), 1),
            "__1-1"
        );
    }
}
