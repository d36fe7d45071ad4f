//! What the host itself reads of an upload: its size, its first bytes and its digest.

use sha2::{Digest, Sha256};

/// The first bytes of a core module.
const CORE: &[u8] = b"\0asm\x01\0\0\0";
/// The first bytes of a component.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// The kind of a file, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Component,
    /// A core module, which is encoded as a component.
    Core,
}

/// The kind of an upload; an error says what it is instead, and what to do.
pub(super) fn kind(upload: &[u8]) -> Result<Kind, &'static str> {
    if upload.starts_with(COMPONENT) {
        return Ok(Kind::Component);
    }
    if upload.starts_with(CORE) {
        return Ok(Kind::Core);
    }
    Err(foreign(upload))
}

/// SHA-256 of a component, in lower-case hexadecimal: the name of a module.
pub fn digest(component: &[u8]) -> String {
    Sha256::digest(component)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Describes a file that is not WebAssembly.
fn foreign(upload: &[u8]) -> &'static str {
    if upload.is_empty() {
        return "the file is empty";
    }
    if upload.starts_with(b"\0asm") {
        return "it is WebAssembly of a version that is neither a core module nor a component; \
                build it with another tool";
    }
    if upload.starts_with(b"\x7fELF") {
        return "it is compiled for one machine; upload the `.wasm` from which it was compiled";
    }
    let text = upload.trim_ascii_start();
    if text.starts_with(b"(module") || text.starts_with(b"(component") || text.starts_with(b";;") {
        return "it is WebAssembly as text; translate it with `wasm-tools parse` first";
    }
    "it is not WebAssembly; upload the `.wasm` that `foldstream build` writes"
}
