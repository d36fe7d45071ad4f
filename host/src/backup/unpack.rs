//! The client's end: makes a data folder of what a host sends, and compares both.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};

use super::wire::{Begin, Header, Reader, Sum, Tag, foreign};
use super::{Error, FORMAT, FileEntry, MANIFEST, Manifest};
use crate::atomic_file;
use crate::data_dir::create_private;
use crate::state;
use crate::state::tables::{Copy, Frozen, Item};

/// Bytes of a file to read at a time.
const READ_BYTES: usize = 64 << 10;
/// The folders of a backup; the catalogue lies next to them.
const FOLDERS: [&str; 3] = ["modules", "state", "log"];

/// How far a backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Files that are copied, or compared.
    pub files: u64,
    pub files_total: u64,
    /// Bytes of content so far.
    pub bytes: u64,
    /// The copy is complete, and is being compared.
    pub is_comparing: bool,
}

/// Receives the progress of a backup, and knows whether it was cancelled.
pub(super) struct Watcher<'a> {
    report: &'a dyn Fn(Progress),
    is_unwanted: &'a AtomicBool,
    progress: Progress,
}

impl Watcher<'_> {
    fn bytes(&mut self, count: usize) -> Result<(), Error> {
        self.progress.bytes += count as u64;
        // Relaxed: one more part is written at most before it is seen.
        if self.is_unwanted.load(Ordering::Relaxed) {
            Err(Error::Unwanted)
        } else {
            Ok(())
        }
    }

    fn file_done(&mut self) {
        self.progress.files += 1;
        (self.report)(self.progress);
    }
}

/// Makes a data folder of the input in an empty folder, reads it again, and compares. Blocking.
pub(crate) fn unpack(
    reader: impl Read,
    folder: &Path,
    report: &dyn Fn(Progress),
    is_unwanted: &AtomicBool,
) -> Result<Manifest, Error> {
    let mut reader = Reader::begin(reader)?;
    let header: Header = reader.expect(Tag::Header)?.json()?;
    let progress = Progress {
        files_total: header.files,
        ..Progress::default()
    };
    let mut watcher = Watcher {
        report,
        is_unwanted,
        progress,
    };
    let mut files = Vec::new();
    while let Some(frame) = reader.take_if(Tag::File)? {
        files.push(receive(&mut reader, folder, frame.json()?, &mut watcher)?);
        watcher.file_done();
    }
    // Without this frame the host broke off, however complete the files look.
    reader.expect(Tag::Done)?;
    let Header {
        version,
        created_at,
        left_out,
        ..
    } = header;
    let manifest = Manifest {
        format: FORMAT,
        version,
        created_at,
        files,
        left_out,
    };
    // All bytes are read once more, from the disk: this is what finds a bad one.
    watcher.progress = Progress {
        is_comparing: true,
        files_total: manifest.files.len() as u64,
        ..Progress::default()
    };
    compare(folder, &manifest, &mut watcher)?;
    // The manifest is written last: a folder without it is no backup.
    let path = folder.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).expect("plain data");
    let mut file = private(&path)?;
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .map_err(Error::io(&path))?;
    sync_folders(folder)?;
    Ok(manifest)
}

/// Reads a backup, and compares it with its manifest. Blocking.
pub(crate) fn check(
    folder: &Path,
    report: &dyn Fn(Progress),
    is_unwanted: &AtomicBool,
) -> Result<Manifest, Error> {
    let path = folder.join(MANIFEST);
    let text = fs::read(&path).map_err(Error::io(&path))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| Error::Format(format!("{} is unreadable: {error}", path.display())))?;
    if manifest.format > FORMAT {
        let message = format!(
            "{} is of format {}, this build reads 1 to {FORMAT}; upgrade foldstream",
            folder.display(),
            manifest.format
        );
        return Err(Error::Format(message));
    }
    let files_total = manifest.files.len() as u64;
    let progress = Progress {
        is_comparing: true,
        files_total,
        ..Progress::default()
    };
    compare(
        folder,
        &manifest,
        &mut Watcher {
            report,
            is_unwanted,
            progress,
        },
    )?;
    Ok(manifest)
}

/// Makes one file.
fn receive(
    reader: &mut Reader<impl Read>,
    folder: &Path,
    begin: Begin,
    watcher: &mut Watcher<'_>,
) -> Result<FileEntry, Error> {
    // The name comes from the network.
    check_name(&begin.file)?;
    let path = folder.join(&begin.file);
    make_folders(folder, &path)?;
    let mut sum = Sum::default();
    if begin.file.ends_with(".wasm") {
        let mut file = private(&path)?;
        while let Some(frame) = reader.take_if(Tag::Octets)? {
            sum.octets(&frame.content);
            watcher.bytes(frame.content.len())?;
            file.write_all(&frame.content).map_err(Error::io(&path))?;
        }
        file.sync_all().map_err(Error::io(&path))?;
    } else {
        // A callback can only fail with an error of the system; the one that it had is kept here.
        let mut failure = None;
        let made = atomic_file::create(&path, |new| {
            receive_tables(reader, new, &mut sum, watcher).map_err(|error| {
                failure = Some(error);
                std::io::Error::other("the copy failed")
            })
        });
        match (failure, made) {
            (Some(failure), _) => return Err(failure),
            (None, made) => made.map_err(Error::io(&path))?,
        }
    }
    let wanted: FileEntry = reader.expect(Tag::End)?.json()?;
    // What arrived against what the host says that it sent.
    let found = sum.entry(begin);
    if found == wanted {
        Ok(found)
    } else {
        Err(foreign("a file is not what the host says of it"))
    }
}

fn receive_tables(
    reader: &mut Reader<impl Read>,
    path: &Path,
    sum: &mut Sum,
    watcher: &mut Watcher<'_>,
) -> Result<(), Error> {
    let copy = Copy::begin(path)?;
    while let Some(frame) = reader.take_if(Tag::Table)? {
        let name = frame.text()?;
        sum.item(Item::Table(&name));
        copy.table(&name, &mut || {
            let Some(frame) = reader.take_if(Tag::Row)? else {
                return Ok(None);
            };
            let (key, value) = frame.row()?;
            sum.item(Item::Row(&key, &value));
            watcher.bytes(key.len() + value.len())?;
            Ok::<_, Error>(Some((key, value)))
        })?;
    }
    Ok(())
}

/// Compares all files with the manifest.
fn compare(folder: &Path, manifest: &Manifest, watcher: &mut Watcher<'_>) -> Result<(), Error> {
    for wanted in &manifest.files {
        // A manifest may have been changed by hand: it must not lead the reader elsewhere.
        check_name(&wanted.file)?;
        let path = folder.join(&wanted.file);
        let differs = |found: String| Error::Differs {
            file: wanted.file.clone(),
            found,
        };
        let sum = match summed(&path, watcher) {
            Ok(sum) => sum,
            // Not a difference: the caller ended the comparison.
            Err(Error::Unwanted) => return Err(Error::Unwanted),
            Err(error) => return Err(differs(error.to_string())),
        };
        let found = sum.entry(Begin {
            file: wanted.file.clone(),
            position: wanted.position,
        });
        if found != *wanted {
            return Err(differs(format!(
                "its content is not the same: {} bytes, and {} were expected",
                found.bytes, wanted.bytes
            )));
        }
        watcher.file_done();
    }
    Ok(())
}

fn summed(path: &Path, watcher: &mut Watcher<'_>) -> Result<Sum, Error> {
    let mut sum = Sum::default();
    if path
        .extension()
        .is_some_and(|extension| extension == "wasm")
    {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let mut octets = vec![0; READ_BYTES];
        loop {
            let count = file.read(&mut octets).map_err(Error::io(path))?;
            if count == 0 {
                return Ok(sum);
            }
            sum.octets(&octets[..count]);
            watcher.bytes(count)?;
        }
    }
    // Damage may break assumptions of the storage, which then panics instead of failing.
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Frozen::open(path)?.each(&mut |item| {
            sum.item(item);
            match item {
                Item::Table(_) => Ok(()),
                Item::Row(key, value) => watcher.bytes(key.len() + value.len()),
            }
        })
    }));
    read.unwrap_or_else(|_| Err(state::Error::damaged("its content contradicts itself").into()))?;
    Ok(sum)
}

/// Whether a data folder may have this file: the input must not be written anywhere else.
fn check_name(file: &str) -> Result<(), Error> {
    let parts: Vec<Component<'_>> = Path::new(file).components().collect();
    let is_plain = parts
        .iter()
        .all(|part| matches!(part, Component::Normal(_)));
    let is_ours = match parts.as_slice() {
        // Only the catalogue lies in the folder itself.
        [_] => file == "catalog.redb",
        [Component::Normal(folder), .., Component::Normal(name)] => {
            let name = name.to_string_lossy();
            let is_known = FOLDERS.iter().any(|known| folder.to_str() == Some(known));
            // Three parts: `state/NAME/NUMBER.redb`.
            is_known && parts.len() <= 3 && (name.ends_with(".redb") || name.ends_with(".wasm"))
        }
        _ => false,
    };
    if is_plain && is_ours {
        Ok(())
    } else {
        Err(foreign(&format!("{file:?} is no file of a data folder")))
    }
}

/// Creates the folders above a file, for this user alone.
fn make_folders(folder: &Path, path: &Path) -> Result<(), Error> {
    let inner = path
        .parent()
        .and_then(|parent| parent.strip_prefix(folder).ok())
        .unwrap_or(Path::new(""));
    let mut made = folder.to_owned();
    for part in inner.components() {
        made.push(part);
        create_private(&made).map_err(Error::io(&made))?;
    }
    Ok(())
}

fn private(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io(path))
}

/// Makes the names in all folders durable.
fn sync_folders(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            sync_folders(&path)?;
        }
    }
    File::open(folder)
        .and_then(|open| open.sync_all())
        .map_err(Error::io(folder))
}

#[cfg(test)]
mod tests {
    use super::super::wire::Writer;
    use super::*;

    #[derive(PartialEq)]
    enum End {
        Whole,
        BrokenOff,
    }

    /// What a host sends of a log with some rows and of a module.
    fn sent(end: End) -> Vec<u8> {
        let mut octets = Vec::new();
        let mut send = |part: Vec<u8>| {
            octets.extend(part);
            Ok(())
        };
        let mut writer = Writer::begin(&mut send);
        let header = Header {
            version: "1".to_owned(),
            created_at: "now".to_owned(),
            files: 2,
            left_out: Vec::new(),
        };
        writer.json(Tag::Header, &header).expect("memory takes all");
        let mut file = |file: &str, items: &[Item<'_>], module: &[u8]| {
            let begin = Begin {
                file: file.to_owned(),
                position: Some(7),
            };
            writer.json(Tag::File, &begin).expect("memory takes all");
            let mut sum = Sum::default();
            for item in items {
                sum.item(*item);
                writer.item(*item).expect("memory takes all");
            }
            if !module.is_empty() {
                sum.octets(module);
                writer
                    .frame(Tag::Octets, &[module])
                    .expect("memory takes all");
            }
            writer
                .json(Tag::End, &sum.entry(begin))
                .expect("memory takes all");
        };
        let number = 9_u64.to_be_bytes();
        let subjects = [
            Item::Table("subjects"),
            Item::Row(b"orders.1", &number),
            Item::Row(b"orders.2", &number),
        ];
        file("log/events.redb", &subjects, b"");
        file("modules/ab.wasm", &[], b"\0asm");
        if end == End::BrokenOff {
            writer
                .frame(Tag::Failed, &[b"the disk is bad"])
                .expect("memory takes all");
        } else {
            writer.frame(Tag::Done, &[]).expect("memory takes all");
        }
        writer.flush().expect("memory takes all");
        octets
    }

    fn unpacked(octets: &[u8], folder: &Path) -> Result<Manifest, Error> {
        unpack(octets, folder, &|_| (), &AtomicBool::new(false))
    }

    fn checked(folder: &Path) -> Result<Manifest, Error> {
        check(folder, &|_| (), &AtomicBool::new(false))
    }

    #[test]
    fn what_was_sent_is_there_and_can_be_checked_later() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let manifest = unpacked(&sent(End::Whole), folder.path()).expect("it is whole");
        let files: Vec<_> = manifest
            .files
            .iter()
            .map(|file| (file.file.as_str(), file.rows))
            .collect();
        assert_eq!(
            files,
            [("log/events.redb", Some(2)), ("modules/ab.wasm", None)]
        );
        assert_eq!(checked(folder.path()).expect("it is as it was"), manifest);
        fs::write(folder.path().join("modules/ab.wasm"), b"\0asM").expect("written");
        let error = checked(folder.path()).expect_err("it was changed");
        assert!(
            matches!(&error, Error::Differs { file, .. } if file == "modules/ab.wasm"),
            "{error}"
        );
        fs::remove_file(folder.path().join("log/events.redb")).expect("removed");
        let error = checked(folder.path()).expect_err("it is gone");
        assert!(
            matches!(&error, Error::Differs { file, .. } if file == "log/events.redb"),
            "{error}"
        );
    }

    #[test]
    fn what_breaks_off_anywhere_is_no_backup() {
        let whole = sent(End::Whole);
        for length in (0..whole.len()).step_by(7) {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let error = unpacked(&whole[..length], folder.path()).expect_err("it is not whole");
            assert!(matches!(error, Error::BrokeOff), "at {length}: {error}");
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = unpacked(&sent(End::BrokenOff), folder.path()).expect_err("the host failed");
        assert!(
            matches!(&error, Error::Host(why) if why == "the disk is bad"),
            "{error}"
        );
    }

    #[test]
    fn octets_that_changed_on_the_way_are_noticed() {
        let whole = sent(End::Whole);
        let files = unpacked_files(&whole);
        for at in (0..whole.len()).step_by(5) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            let folder = tempfile::tempdir().expect("a temporary folder");
            // The header says what no sum covers.
            let is_reported =
                unpacked(&changed, folder.path()).map_or(true, |manifest| manifest.files == files);
            assert!(is_reported, "octet {at}");
        }
    }

    fn unpacked_files(octets: &[u8]) -> Vec<FileEntry> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        unpacked(octets, folder.path()).expect("it is whole").files
    }

    #[test]
    fn names_lead_nowhere_else() {
        for sound in [
            "catalog.redb",
            "state/totals/1.redb",
            "log/events.redb",
            "modules/ab.wasm",
        ] {
            check_name(sound).expect(sound);
        }
        for foreign in [
            "../x.redb",
            "/etc/x.redb",
            "state/../../x.redb",
            "other/1.redb",
            "state",
            "x.redb",
            "",
            "log/a/b/c.redb",
            "log/a",
        ] {
            check_name(foreign).expect_err(foreign);
        }
    }
}
