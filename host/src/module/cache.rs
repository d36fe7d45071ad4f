//! Compiled code, cached on disk by digest and engine settings.
//!
//! Loading compiled code means running it, so every file carries a MAC under a random key of this
//! host. A file without a valid MAC is never loaded: it is removed, and the module is compiled
//! again. Next to the code is what the host needs to know about the module, so that it need not
//! parse it. Layout of a file: [`MAGIC`], the HMAC-SHA-256 over the file's name and the rest of the
//! file; the imports and schemas, the code.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::Sha256;

use super::Error;
use super::answer::Found;
use crate::small_file::{open_regular, read_open};

/// The first bytes of every file; the last byte is the version of the layout.
const MAGIC: &[u8; 8] = b"FSCODE\0\x03";
const MAC_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const KEY_FILE: &str = "key";
/// Extension of files with compiled code.
const CODE: &str = "code";
/// Extension of files that are being written.
const UNFINISHED: &str = "new";
/// Most bytes of all files together; the least recently used are removed first.
const CACHE_BYTES_MAX: u64 = 2 << 30;
/// Most bytes of a file in addition to its code: imports and schemas, whose limits are lower.
const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;
/// Age at which an unfinished file counts as left by a dead process.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(3_600);

pub(super) struct Cache {
    folder: PathBuf,
    key: [u8; KEY_BYTES],
    /// Identifies the versions of this program and the engine, and the engine's settings.
    settings: String,
    /// Longest file that is read, in bytes.
    file_bytes_max: u64,
}

/// The contents of a file with a valid MAC.
pub(super) struct Authentic {
    content: Vec<u8>,
    /// Where the code begins.
    code: usize,
    /// What the module imports and carries.
    pub(super) found: Found,
}

impl Authentic {
    pub(super) fn code(&self) -> &[u8] {
        &self.content[self.code..]
    }
}

impl Cache {
    /// Opens or creates a cache. No code has more than `code_bytes_max` bytes.
    pub(super) fn open(
        folder: &Path,
        engine: &wasmtime::Engine,
        code_bytes_max: u64,
    ) -> Result<Self, Error> {
        let unusable = |error: io::Error| {
            let message = format!(
                "cannot use the cache folder {}: {error}; check its permissions",
                folder.display()
            );
            Error::engine(message, error)
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(unusable)?;
        // Code is run as it is found there, so a user who may write to the folder could run code as
        // this one.
        check_owner(folder).map_err(unusable)?;
        let key = read_or_make_key(folder).map_err(unusable)?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        // Another version may check more than the one that accepted a module.
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        // Files of another layout are not looked at.
        MAGIC.hash(&mut hasher);
        let settings = format!("{:016x}", hasher.finish());
        let cache = Self {
            folder: folder.to_owned(),
            key,
            settings,
            file_bytes_max: code_bytes_max.saturating_add(DESCRIPTION_BYTES_MAX),
        };
        cache.evict(CACHE_BYTES_MAX);
        Ok(cache)
    }

    /// Length of the file of a module, in bytes; 0 if there is none that would be read.
    pub(super) fn length(&self, digest: &str) -> u64 {
        let metadata = fs::metadata(self.folder.join(self.name(digest)));
        let metadata = metadata.ok().filter(fs::Metadata::is_file);
        metadata
            .map(|metadata| metadata.len())
            .filter(|length| *length <= self.file_bytes_max)
            .unwrap_or(0)
    }

    /// The code of a module, if there is a file with a valid MAC.
    pub(super) fn get(&self, digest: &str) -> Option<Authentic> {
        let name = self.name(digest);
        let path = self.folder.join(&name);
        // Anybody may have put a link to a device here: nothing is read without an end.
        let read = open_regular(&path).and_then(|file| {
            let content = read_open(&file, self.file_bytes_max)?;
            Ok((file, content))
        });
        let (file, content) = match read {
            Ok(read) => read,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(
                        path = %path.display(),
                        %error,
                        "cannot read cached code; compiling again"
                    );
                }
                return None;
            }
        };
        let Some((found, code)) = self.authentic(&name, &content) else {
            tracing::warn!(
                path = %path.display(),
                "cached code is damaged or not ours; compiling again"
            );
            // An error is ignored: the new code replaces the file anyway.
            let _ = fs::remove_file(&path);
            return None;
        };
        // Eviction uses this time; a file system that refuses it only makes eviction less exact.
        let _ = file.set_modified(SystemTime::now());
        Some(Authentic {
            content,
            code,
            found,
        })
    }

    /// Stores the code of a module, and what it has.
    pub(super) fn put(&self, digest: &str, found: &Found, code: &[u8]) -> io::Result<()> {
        let name = self.name(digest);
        // Never written in place: a crash leaves an unfinished file, which `evict` removes later.
        let mut file = tempfile::Builder::new()
            .suffix(&format!(".{UNFINISHED}"))
            .tempfile_in(&self.folder)?;
        file.write_all(MAGIC)?;
        let found = found.to_bytes();
        file.write_all(&self.mac(&name, &[&found, code]).finalize().into_bytes())?;
        file.write_all(&found)?;
        file.write_all(code)?;
        // The file before its name, and its name before the answer: a name never means half a file.
        file.as_file().sync_all()?;
        file.persist(self.folder.join(name))?;
        File::open(&self.folder)?.sync_all()?;
        self.evict(CACHE_BYTES_MAX);
        Ok(())
    }

    fn name(&self, digest: &str) -> String {
        format!("{digest}-{}.{CODE}", self.settings)
    }

    fn mac(&self, name: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        // With its length, so that no other split into a name and a rest has the same MAC.
        mac.update(&(name.len() as u64).to_be_bytes());
        mac.update(name.as_bytes());
        parts.iter().for_each(|part| mac.update(part));
        mac
    }

    /// What the module has, and where the code begins; none without a valid MAC.
    fn authentic(&self, name: &str, content: &[u8]) -> Option<(Found, usize)> {
        // Nothing of the rest is looked at before its MAC: it would be parsed as trusted.
        let (mac, rest) = content.strip_prefix(MAGIC)?.split_at_checked(MAC_BYTES)?;
        self.mac(name, &[rest]).verify_slice(mac).ok()?;
        let (found, length) = Found::from_bytes(rest)?;
        Some((found, content.len() - rest.len() + length))
    }

    /// Removes the least recently used files until the rest fits, and files left by dead processes.
    fn evict(&self, bytes_max: u64) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            // Without a time it cannot be ranked; it stays, and counts for nothing.
            let Ok(modified) = metadata.modified() else {
                continue;
            };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(CODE) => files.push((modified, metadata.len(), path)),
                Some(UNFINISHED)
                    // Another process may be writing: only what is older than any write is removed.
                    if modified.elapsed().is_ok_and(|age| age > UNFINISHED_AGE_MAX) =>
                {
                    let _ = fs::remove_file(path);
                }
                _ => {}
            }
        }
        // By time first, then by length and path: the order is the same for equal times.
        files.sort();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total <= bytes_max {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                total -= length;
            }
        }
    }
}

/// Refuses a folder in which somebody else could put a key and code: we would run that code as
/// ours.
fn check_owner(folder: &Path) -> io::Result<()> {
    let metadata = fs::metadata(folder)?;
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(io::Error::other(format!(
            "it belongs to user {} and this is user {user}; remove it, or give it to this user",
            metadata.uid()
        )));
    }
    // Nobody else can place anything in a folder that only its owner may write.
    if metadata.mode() & 0o022 != 0 {
        tracing::warn!(
            path = %folder.display(),
            "other users could write into the cache folder; removing their permission"
        );
        fs::set_permissions(folder, fs::Permissions::from_mode(metadata.mode() & 0o700))?;
        // Files that they may have put there are not ours.
        let _ = fs::remove_file(folder.join(KEY_FILE));
    }
    Ok(())
}

/// Reads the key, or creates one. Two processes that create one at the same time end up with the
/// same.
fn read_or_make_key(folder: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let path = folder.join(KEY_FILE);
    match read_key(&path) {
        Ok(Some(key)) => return Ok(key),
        Ok(None) => {
            tracing::warn!(
                path = %path.display(),
                "the cache's key was damaged or readable by others; creating a new one"
            );
            fs::remove_file(&path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = [0; KEY_BYTES];
    SysRng.try_fill_bytes(&mut key).map_err(io::Error::other)?;
    let mut file = tempfile::Builder::new()
        .suffix(&format!(".{UNFINISHED}"))
        .tempfile_in(folder)?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(&key)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(&path) {
        Ok(_) => Ok(key),
        // Another process was faster: its key is the one to use, and ours goes with its file.
        Err(_) => read_key(&path)?.ok_or_else(|| io::Error::other("the key file cannot be used")),
    }
}

/// The key; none if it has another length, belongs to somebody else, or others can read it.
fn read_key(path: &Path) -> io::Result<Option<[u8; KEY_BYTES]>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(no_follow())
        .open(path)?;
    let mut content = Vec::new();
    let metadata = file.metadata()?;
    // No bit for the group or for others: the lowest six bits of the mode are all zero.
    let private = metadata.mode().trailing_zeros() >= 6
        && metadata.uid() == rustix::process::geteuid().as_raw();
    // One byte more than a key, so that a longer file is seen to be none.
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut content)?;
    Ok(content.try_into().ok().filter(|_| private))
}

/// A link in place of the key could point to a file that someone else knows.
fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).expect("open flags fit the system's type")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Result<Cache, Error> {
        Cache::open(folder, &wasmtime::Engine::default(), 1_000)
    }

    #[test]
    fn neither_devices_nor_long_files_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(folder.path()).expect("opens");
        let path = folder.path().join(cache.name("aa"));
        std::os::unix::fs::symlink("/dev/zero", &path).expect("links");
        assert!(cache.get("aa").is_none());
        assert_eq!(cache.length("aa"), 0);
        // It can be replaced by code.
        cache
            .put("aa", &Found::default(), b"code")
            .expect("is kept");
        assert_eq!(cache.get("aa").expect("is there").code(), b"code");
        let file = File::options().append(true).open(&path).expect("opens");
        file.set_len(1 << 33).expect("it is sparse");
        assert!(cache.get("aa").is_none());
        assert_eq!(cache.length("aa"), 0);
    }

    #[test]
    fn key_is_private_and_survives() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = open(folder.path()).expect("opens");
        let mode = fs::metadata(folder.path().join(KEY_FILE))
            .expect("exists")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(first.key, open(folder.path()).expect("opens").key);
    }

    #[test]
    fn key_that_others_can_read_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = open(folder.path()).expect("opens").key;
        let path = folder.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changes");
        assert_ne!(first, open(folder.path()).expect("opens").key);
    }

    #[test]
    fn key_from_a_folder_that_others_could_write_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = open(folder.path()).expect("opens").key;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("changes");
        assert_ne!(first, open(folder.path()).expect("opens").key);
        assert_eq!(
            fs::metadata(folder.path()).expect("is there").mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn key_and_folder_of_another_user_are_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = open(folder.path()).expect("opens").key;
        let path = folder.path().join(KEY_FILE);
        let give_away = |path: &Path| std::os::unix::fs::chown(path, Some(54_321), None);
        if give_away(&path).is_err() {
            eprintln!("skipped: only root can give a file to another user");
            return;
        }
        assert_ne!(
            first,
            open(folder.path()).expect("opens").key,
            "the other user knows that key"
        );
        give_away(folder.path()).expect("as the file");
        let refused = open(folder.path()).err();
        let message = refused.expect("code could be put there").to_string();
        assert!(message.contains("belongs to user 54321"), "{message}");
    }

    #[test]
    fn changed_or_renamed_code_is_not_returned() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(folder.path()).expect("opens");
        let found = Found {
            imports: vec!["foldstream:module/log@0.1.0".to_owned()],
            schemas: Vec::new(),
        };
        cache.put("aa", &found, b"code").expect("is kept");
        let kept = cache.get("aa").expect("is there");
        assert_eq!((kept.code(), &kept.found), (b"code".as_slice(), &found));
        fs::copy(
            folder.path().join(cache.name("aa")),
            folder.path().join(cache.name("bb")),
        )
        .expect("copies");
        assert!(
            cache.get("bb").is_none(),
            "the name is part of what is authenticated"
        );
        let path = folder.path().join(cache.name("aa"));
        let mut content = fs::read(&path).expect("reads");
        *content.last_mut().expect("not empty") ^= 1;
        fs::write(&path, content).expect("writes");
        assert!(cache.get("aa").is_none());
        assert!(!path.exists(), "a bad file is removed");
    }

    #[test]
    fn longest_unused_code_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(folder.path()).expect("opens");
        for (age, digest) in [(30, "aa"), (20, "bb"), (10, "cc")] {
            cache
                .put(digest, &Found::default(), &[0; 1_000])
                .expect("is kept");
            let file = File::options()
                .write(true)
                .open(folder.path().join(cache.name(digest)))
                .expect("opens");
            file.set_modified(SystemTime::now() - Duration::from_secs(age))
                .expect("sets the time");
        }
        assert!(
            cache.get("aa").is_some(),
            "reading it makes it the youngest"
        );
        cache.evict(2_500);
        assert!(cache.get("bb").is_none());
        assert!(cache.get("aa").is_some() && cache.get("cc").is_some());
    }
}
