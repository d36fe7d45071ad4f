//! What the host itself sees of an upload: its size, its first bytes and its digest.

use sha2::{Digest, Sha256};

/// How a core module begins.
const CORE: &[u8] = b"\0asm\x01\0\0\0";
/// How a component begins.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// What a file says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Component,
    /// A core module, of which a component is made.
    Core,
}

/// What an upload says that it is; else what it is, and what to do.
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
    Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a file is that is no WebAssembly.
fn foreign(upload: &[u8]) -> &'static str {
    if upload.is_empty() {
        return "the file is empty";
    }
    if upload.starts_with(b"\0asm") {
        return "it is WebAssembly of a version that is neither a core module nor a component; build it with another tool";
    }
    if upload.starts_with(b"\x7fELF") {
        return "it is compiled for one machine; upload the `.wasm` that it was made from";
    }
    let text = upload.trim_ascii_start();
    if text.starts_with(b"(module") || text.starts_with(b"(component") || text.starts_with(b";;") {
        return "it is WebAssembly as text; translate it with `wasm-tools parse` first";
    }
    "it is no WebAssembly; upload the `.wasm` that `foldstream build` writes"
}
