//! The answer of the checking process, as bytes. The host parses it as strictly as any untrusted
//! input, because the process that wrote it has parsed an upload.

use std::io::{self, Write};

use super::output::clipped;
use crate::schemas::{self, CARRIED_BYTES_MAX, EventSchema};

/// The first bytes of every answer; the last byte is the version of the layout.
const MAGIC: &[u8; 8] = b"FSANSWR\x02";
/// Most interfaces that a module may import. The contract and WASI have fewer than fifty.
pub(super) const IMPORTS_MAX: usize = 256;
/// Longest name of an interface.
pub(super) const IMPORT_BYTES_MAX: usize = 256;
/// Longest text from the process to keep.
pub(super) const WORDS_BYTES_MAX: usize = 4_096;
/// Most bytes of an answer in addition to a component or code.
pub(super) const OVERHEAD_BYTES_MAX: usize =
    MAGIC.len() + 8 + IMPORTS_MAX * (IMPORT_BYTES_MAX + 2) + 4 + CARRIED_BYTES_MAX;

/// What the checker found in a valid module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
    /// Interfaces that it imports.
    pub(super) imports: Vec<String>,
    /// The schemas of events that it carries.
    pub(super) schemas: Vec<EventSchema>,
}

/// The answer to one upload.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// The module is valid: what it has, and the component if the upload was a core module.
    Checked {
        /// What it imports and carries.
        found: Found,
        /// The component made from a core module; none if the upload is a component.
        component: Option<Vec<u8>>,
    },
    /// The native code of the component.
    Compiled(Vec<u8>),
    /// The module is at fault; why, and what to do.
    Refused(String),
    /// The process cannot do its work; why, and what to do.
    Broken(String),
    /// What the process cannot access.
    Walls(Walls),
}

/// The accesses that the checking process was seen to be denied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walls {
    /// It cannot open or create files.
    pub files: bool,
    /// It cannot open sockets.
    pub sockets: bool,
    /// It cannot start or signal processes.
    pub processes: bool,
}

impl Walls {
    /// What the process can still access; empty if all protections work.
    pub fn gaps(&self) -> Vec<&'static str> {
        let all = [
            (self.files, "files"),
            (self.sockets, "sockets"),
            (self.processes, "processes"),
        ];
        all.into_iter()
            .filter(|(is_refused, _)| !is_refused)
            .map(|(_, what)| what)
            .collect()
    }
}

impl Answer {
    /// Encodes the answer, which ends with the output.
    pub(super) fn write_to(&self, output: &mut impl Write) -> io::Result<()> {
        output.write_all(MAGIC)?;
        match self {
            Self::Checked { found, component } => {
                output.write_all(&[b'K', u8::from(component.is_some())])?;
                output.write_all(&found.to_bytes())?;
                output.write_all(component.as_deref().unwrap_or_default())?;
            }
            Self::Compiled(code) => {
                output.write_all(b"C")?;
                output.write_all(code)?;
            }
            Self::Refused(words) => {
                output.write_all(b"R")?;
                output.write_all(clipped(words, WORDS_BYTES_MAX).as_bytes())?;
            }
            Self::Broken(words) => {
                output.write_all(b"B")?;
                output.write_all(clipped(words, WORDS_BYTES_MAX).as_bytes())?;
            }
            Self::Walls(Walls {
                files,
                sockets,
                processes,
            }) => {
                output.write_all(&[
                    b'W',
                    u8::from(*files),
                    u8::from(*sockets),
                    u8::from(*processes),
                ])?;
            }
        }
        output.flush()
    }

    /// Decodes an answer; none if it is not exactly one.
    pub(super) fn parse(mut bytes: Vec<u8>) -> Option<Self> {
        // Each branch must use up the rest: what follows an answer makes it none.
        let rest = bytes.strip_prefix(MAGIC)?;
        match *rest.first()? {
            b'K' => {
                let has_component = match rest.get(1)? {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
                let (found, length) = Found::from_bytes(&rest[2..])?;
                // In place: a component may have many megabytes, and would otherwise be copied.
                bytes.drain(..MAGIC.len() + 2 + length);
                // A component is not sent back: the host has it.
                if !has_component && !bytes.is_empty() {
                    return None;
                }
                Some(Self::Checked {
                    found,
                    component: has_component.then_some(bytes),
                })
            }
            b'C' => {
                bytes.drain(..=MAGIC.len());
                Some(Self::Compiled(bytes))
            }
            b'W' => match rest[1..] {
                [files, sockets, processes] => Some(Self::Walls(Walls {
                    files: files == 1,
                    sockets: sockets == 1,
                    processes: processes == 1,
                })),
                _ => None,
            },
            b'R' => Some(Self::Refused(words(&rest[1..])?)),
            b'B' => Some(Self::Broken(words(&rest[1..])?)),
            _ => None,
        }
    }
}

/// Text from the process, without control characters.
pub(super) fn plain(words: &str) -> String {
    words
        .trim()
        .chars()
        .map(|char| {
            // Its words go to people's terminals, where escape sequences could do things.
            if char.is_control() && char != '\n' {
                '\u{fffd}'
            } else {
                char
            }
        })
        .collect()
}

fn words(bytes: &[u8]) -> Option<String> {
    if bytes.len() > WORDS_BYTES_MAX {
        return None;
    }
    Some(plain(std::str::from_utf8(bytes).ok()?))
}

impl Found {
    /// The imports; the length of the schemas, and these.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let schemas = schemas::to_bytes(&self.schemas);
        let length = u32::try_from(schemas.len()).expect("the checker limits the schemas");
        let imports = imports_to_bytes(&self.imports);
        [imports.as_slice(), &length.to_be_bytes(), &schemas].concat()
    }

    /// What was found, and how many bytes it took; none if it is beyond a limit, or not valid.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<(Self, usize)> {
        let (imports, length) = imports_from_bytes(bytes)?;
        let (size, rest) = bytes[length..].split_first_chunk()?;
        let size = usize::try_from(u32::from_be_bytes(*size)).ok()?;
        let (content, behind) = rest.split_at_checked(size)?;
        let schemas = match content {
            [] => Vec::new(),
            content => schemas::parse(content).ok()?,
        };
        Some((Self { imports, schemas }, bytes.len() - behind.len()))
    }
}

/// Names of interfaces: their number, then each with its length.
fn imports_to_bytes(imports: &[String]) -> Vec<u8> {
    let short = |length: usize| {
        u16::try_from(length)
            .expect("the checker limits names and their number")
            .to_be_bytes()
    };
    let mut bytes = short(imports.len()).to_vec();
    for import in imports {
        bytes.extend(short(import.len()));
        bytes.extend(import.as_bytes());
    }
    bytes
}

/// The names, and how many bytes they took; none if there are too many, or one is not valid.
fn imports_from_bytes(bytes: &[u8]) -> Option<(Vec<String>, usize)> {
    let mut rest = bytes;
    let short = |rest: &mut &[u8]| {
        let (length, behind) = rest.split_first_chunk()?;
        *rest = behind;
        Some(usize::from(u16::from_be_bytes(*length)))
    };
    // Before memory is taken for that many.
    let count = short(&mut rest).filter(|count| *count <= IMPORTS_MAX)?;
    let mut imports = Vec::with_capacity(count);
    for _ in 0..count {
        let length = short(&mut rest).filter(|length| *length <= IMPORT_BYTES_MAX)?;
        let (name, behind) = rest.split_at_checked(length)?;
        rest = behind;
        imports.push(
            std::str::from_utf8(name)
                .ok()
                .filter(|name| is_name(name))?
                .to_owned(),
        );
    }
    Some((imports, bytes.len() - rest.len()))
}

/// Whether this is a valid name for an interface.
pub(super) fn is_name(name: &str) -> bool {
    (1..=IMPORT_BYTES_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(answer: &Answer) -> Vec<u8> {
        let mut bytes = Vec::new();
        answer.write_to(&mut bytes).expect("memory takes it");
        bytes
    }

    fn checked(component: Option<Vec<u8>>) -> Answer {
        Answer::Checked {
            found: Found {
                imports: vec!["foldstream:module/state@0.1.0".to_owned(), "a".to_owned()],
                schemas: vec![EventSchema {
                    event: "placed".to_owned(),
                    version: 2,
                    direction: schemas::Direction::Reads,
                    schema: serde_json::json!({ "type": "object" }),
                }],
            },
            component,
        }
    }

    #[test]
    fn answer_comes_back_as_it_was() {
        for answer in [
            checked(None),
            checked(Some(b"component".to_vec())),
            Answer::Compiled(b"code".to_vec()),
            Answer::Refused("no world".to_owned()),
            Answer::Walls(Walls {
                files: true,
                sockets: false,
                processes: true,
            }),
            Answer::Broken("no memory".to_owned()),
        ] {
            assert_eq!(Answer::parse(bytes(&answer)), Some(answer));
        }
    }

    #[test]
    fn answer_that_is_cut_or_changed_is_none_or_another() {
        let whole = bytes(&checked(None));
        for length in 0..whole.len() {
            assert_eq!(
                Answer::parse(whole[..length].to_vec()),
                None,
                "{length} bytes"
            );
        }
        let more = [whole.as_slice(), b"x"].concat();
        assert_eq!(Answer::parse(more), None, "nothing follows");
        for index in 0..whole.len() {
            let mut changed = whole.clone();
            changed[index] ^= 0x80;
            assert_ne!(Answer::parse(changed), Some(checked(None)), "byte {index}");
        }
    }

    #[test]
    fn answer_without_measure_is_none() {
        let many = [MAGIC.as_slice(), b"K\0\xff\xff"].concat();
        assert_eq!(Answer::parse(many), None);
        let long = [MAGIC.as_slice(), b"R", &[b'x'; WORDS_BYTES_MAX + 1]].concat();
        assert_eq!(Answer::parse(long), None);
        let control = [MAGIC.as_slice(), b"K\0\0\x01\0\x01\x1b"].concat();
        assert_eq!(Answer::parse(control), None);
        let schemas = [MAGIC.as_slice(), b"K\0\0\0\xff\xff\xff\xff{}"].concat();
        assert_eq!(Answer::parse(schemas), None);
        let none = [MAGIC.as_slice(), b"K\0\0\0\0\0\0\x02{}"].concat();
        assert_eq!(Answer::parse(none), None, "not of the form of schemas");
    }

    #[test]
    fn words_move_no_cursor() {
        let answer = Answer::Refused("\x1b[2Jgone\r".to_owned());
        assert_eq!(
            Answer::parse(bytes(&answer)),
            Some(Answer::Refused("\u{fffd}[2Jgone".to_owned()))
        );
    }
}
