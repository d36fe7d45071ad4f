//! A backup in transit: a line that names the format, then frames of a tag, a length (4 bytes, big
//! endian) and that many octets.

use std::io::{self, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Error, FileEntry, LeftOut};
use crate::state::tables::Item;

/// The start of a backup.
pub(super) const MAGIC: &[u8] = b"foldstream backup 1\n";
/// Longest frame, in bytes: a row has at most one chunk of a log.
const FRAME_BYTES_MAX: u32 = 512 << 20;
/// Size at which frames are passed on, in bytes.
const SEND_BYTES: usize = 128 << 10;

/// The content of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// [`Header`]: the beginning.
    Header = b'H' as isize,
    /// [`Begin`]: a file begins.
    File = b'F' as isize,
    /// A table begins: its name.
    Table = b'T' as isize,
    /// A row: the length of its key (4 bytes, big endian), key, value.
    Row = b'R' as isize,
    /// Octets of a module.
    Octets = b'O' as isize,
    /// [`FileEntry`]: a file ends.
    End = b'E' as isize,
    /// The end of all.
    Done = b'Z' as isize,
    /// The host can't continue; why, as text.
    Failed = b'X' as isize,
}

impl Tag {
    const ALL: [Self; 8] = [
        Self::Header,
        Self::File,
        Self::Table,
        Self::Row,
        Self::Octets,
        Self::End,
        Self::Done,
        Self::Failed,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|tag| *tag as u8 == byte)
    }
}

/// What is known at the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) version: String,
    pub(super) created_at: String,
    pub(super) files: u64,
    pub(super) left_out: Vec<LeftOut>,
}

/// What is known about a file at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Begin {
    pub(super) file: String,
    pub(super) position: Option<u64>,
}

/// Sums up the content of a file.
#[derive(Default)]
pub(super) struct Sum {
    hash: Sha256,
    rows: u64,
    bytes: u64,
    has_tables: bool,
}

impl Sum {
    pub(super) fn item(&mut self, item: Item<'_>) {
        self.has_tables = true;
        let mut part = |tag: u8, octets: &[u8]| {
            // With tags and lengths, so that no bytes can move from a key to its value unseen.
            self.hash.update([tag]);
            self.hash.update((octets.len() as u64).to_be_bytes());
            self.hash.update(octets);
        };
        match item {
            Item::Table(name) => part(b't', name.as_bytes()),
            Item::Row(key, value) => {
                part(b'k', key);
                part(b'v', value);
                self.rows += 1;
                self.bytes += (key.len() + value.len()) as u64;
            }
        }
    }

    pub(super) fn octets(&mut self, octets: &[u8]) {
        self.hash.update(octets);
        self.bytes += octets.len() as u64;
    }

    pub(super) fn entry(self, begin: Begin) -> FileEntry {
        FileEntry {
            file: begin.file,
            position: begin.position,
            rows: self.has_tables.then_some(self.rows),
            bytes: self.bytes,
            sha256: self
                .hash
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        }
    }
}

/// The destination of frames. It fails if nobody receives them any more.
pub(super) type Send<'a> = &'a mut dyn FnMut(Vec<u8>) -> Result<(), Error>;

pub(super) struct Writer<'a> {
    buffer: Vec<u8>,
    send: Send<'a>,
}

impl<'a> Writer<'a> {
    pub(super) fn begin(send: Send<'a>) -> Self {
        Self {
            buffer: MAGIC.to_vec(),
            send,
        }
    }

    pub(super) fn json(&mut self, tag: Tag, content: &impl Serialize) -> Result<(), Error> {
        self.frame(tag, &[&serde_json::to_vec(content).expect("plain data")])
    }

    pub(super) fn item(&mut self, item: Item<'_>) -> Result<(), Error> {
        match item {
            Item::Table(name) => self.frame(Tag::Table, &[name.as_bytes()]),
            Item::Row(key, value) => {
                // A key fits: the frame that it is in is checked below.
                self.frame(Tag::Row, &[&(key.len() as u32).to_be_bytes(), key, value])
            }
        }
    }

    pub(super) fn frame(&mut self, tag: Tag, parts: &[&[u8]]) -> Result<(), Error> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let length = u32::try_from(length)
            .ok()
            .filter(|length| *length <= FRAME_BYTES_MAX);
        let length = length
            .ok_or_else(|| Error::Format(format!("a row has more than {FRAME_BYTES_MAX} bytes")))?;
        self.buffer.push(tag as u8);
        self.buffer.extend_from_slice(&length.to_be_bytes());
        parts
            .iter()
            .for_each(|part| self.buffer.extend_from_slice(part));
        // Rows are often small; they are passed on together.
        if self.buffer.len() < SEND_BYTES {
            Ok(())
        } else {
            self.flush()
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        (self.send)(std::mem::replace(
            &mut self.buffer,
            Vec::with_capacity(SEND_BYTES * 2),
        ))
    }
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) tag: Tag,
    pub(super) content: Vec<u8>,
}

impl Frame {
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.content).map_err(|error| foreign(&error.to_string()))
    }

    pub(super) fn text(self) -> Result<String, Error> {
        String::from_utf8(self.content).map_err(|error| foreign(&error.to_string()))
    }

    /// Key and value of a row.
    pub(super) fn row(mut self) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let length = self
            .content
            .first_chunk::<4>()
            .map(|length| u32::from_be_bytes(*length) as usize);
        match length {
            Some(length) if length <= self.content.len() - 4 => {
                // First the value off the end, then the length off the beginning.
                let value = self.content.split_off(4 + length);
                Ok((self.content.split_off(4), value))
            }
            _ => Err(foreign("a row is longer than its frame")),
        }
    }
}

pub(super) fn foreign(why: &str) -> Error {
    Error::Format(format!(
        "the host sent something that this program can't read as a backup ({why}); use the same \
         version of both"
    ))
}

pub(super) struct Reader<R> {
    reader: R,
    /// A frame that was read and not consumed yet.
    next: Option<Frame>,
}

impl<R: Read> Reader<R> {
    /// Starts; refuses input that is not a backup.
    pub(super) fn begin(mut reader: R) -> Result<Self, Error> {
        let mut magic = [0; MAGIC.len()];
        reader.read_exact(&mut magic).map_err(broken)?;
        // The line has a version: another format begins otherwise.
        if magic != *MAGIC {
            return Err(foreign("it begins otherwise"));
        }
        Ok(Self { reader, next: None })
    }

    /// The next frame. The last words of a host that can't continue are an error.
    pub(super) fn take(&mut self) -> Result<Frame, Error> {
        if let Some(next) = self.next.take() {
            return Ok(next);
        }
        let mut head = [0; 5];
        self.reader.read_exact(&mut head).map_err(broken)?;
        let [tag, length @ ..] = head;
        let tag = Tag::of(tag).ok_or_else(|| foreign("a frame of an unknown kind"))?;
        let length = u32::from_be_bytes(length);
        if length > FRAME_BYTES_MAX {
            return Err(foreign("a frame is too long"));
        }
        let mut content = Vec::new();
        // Memory is allocated as bytes arrive, no matter which length was announced.
        let read = (&mut self.reader)
            .take(u64::from(length))
            .read_to_end(&mut content)
            .map_err(broken)?;
        if read < length as usize {
            return Err(Error::BrokeOff);
        }
        let frame = Frame { tag, content };
        // Wherever it comes: a host can fail in the middle of a file.
        if tag == Tag::Failed {
            Err(Error::Host(frame.text()?))
        } else {
            Ok(frame)
        }
    }

    /// The next frame if it is of this kind.
    pub(super) fn take_if(&mut self, tag: Tag) -> Result<Option<Frame>, Error> {
        let frame = self.take()?;
        if frame.tag == tag {
            return Ok(Some(frame));
        }
        self.next = Some(frame);
        Ok(None)
    }

    /// The next frame, which has to be of this kind.
    pub(super) fn expect(&mut self, tag: Tag) -> Result<Frame, Error> {
        self.take_if(tag)?
            .ok_or_else(|| foreign("frames come in another order"))
    }
}

fn broken(_: io::Error) -> Error {
    Error::BrokeOff
}
