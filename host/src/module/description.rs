//! The description that compiled code carries: its types, functions, globals and segments.
//!
//! The code itself is mapped as it is, but its description becomes many small objects in memory.

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};

/// The section that wasmtime writes it to, serialised with postcard.
const SECTION: &str = ".wasmtime.info";
/// Most bytes of a description. Python with its standard library has 560,000, other languages
/// have less than 100,000.
pub(super) const BYTES_MAX: u64 = 2 << 20;
/// Bytes of memory for each byte of it: 13 were seen for globals, and some 19 for Python.
const GROWTH: u64 = 16;

/// Its length in bytes; 0 if the code is not readable.
pub(super) fn length(code: &[u8]) -> u64 {
    let Ok(file) = ElfFile64::<object::Endianness>::parse(code) else {
        return 0;
    };
    let section = file.section_by_name(SECTION);
    section.map_or(0, |section| section.size())
}

/// What loaded code takes in memory, with its description, in bytes.
pub(super) fn memory_bytes(code: &[u8]) -> u64 {
    (code.len() as u64).saturating_add(length(code).saturating_mul(GROWTH))
}
