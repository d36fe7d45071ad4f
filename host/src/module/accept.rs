//! What an upload has to be: a component that is well formed, of our world, and within the size limit.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use wasmparser::{CanonicalFunction, CanonicalOption, Parser, Payload, Validator, WasmFeatures};
use wit_component::DecodedWasm;

use super::{Accepted, Error, contract, encode};

/// How a core module begins.
const CORE: &[u8] = b"\0asm\x01\0\0\0";
/// How a component begins.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Checks an upload, and makes a component of a core module.
pub(super) fn accept(upload: Bytes, bytes_max: usize) -> Result<Accepted, Error> {
    if upload.len() > bytes_max {
        return Err(Error::Refused(format!(
            "it has {} bytes and may have {bytes_max}; strip debug information, or raise the host's limit",
            upload.len()
        )));
    }
    let component = if upload.starts_with(COMPONENT) {
        upload
    } else if upload.starts_with(CORE) {
        let component = Bytes::from(encode::component(&upload).map_err(Error::Refused)?);
        if component.len() > bytes_max {
            return Err(Error::Refused(format!(
                "as a component it has {} bytes and may have {bytes_max}",
                component.len()
            )));
        }
        component
    } else {
        return Err(Error::Refused(foreign(&upload).to_owned()));
    };
    refuse_async(&component)?;
    Validator::new_with_features(WasmFeatures::default()).validate_all(&component).map_err(malformed)?;
    let (resolve, world) = match wit_component::decode(&component) {
        Ok(DecodedWasm::Component(resolve, world)) => (resolve, world),
        Ok(DecodedWasm::WitPackage(..)) => {
            return Err(Error::Refused("it is a WIT package in binary form, without code".to_owned()));
        }
        Err(error) => return Err(Error::Refused(format!("its types cannot be read: {error:#}"))),
    };
    let imports = contract::check(&resolve, world).map_err(Error::Refused)?;
    let digest = Sha256::digest(&component).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Accepted { component, digest, imports })
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

/// Refuses components that are built for the asynchronous calling convention, with words that help.
fn refuse_async(component: &[u8]) -> Result<(), Error> {
    for payload in Parser::new(0).parse_all(component) {
        let Payload::ComponentCanonicalSection(section) = payload.map_err(malformed)? else { continue };
        for function in section {
            let options = match function.map_err(malformed)? {
                CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => options,
                _ => continue,
            };
            if options.iter().any(|option| matches!(option, CanonicalOption::Async | CanonicalOption::Callback(_))) {
                return Err(Error::Refused(
                    "it is built for asynchronous calls, which this host does not make; build it for synchronous ones \
                     (componentize-qjs: `--sync`, jco: `--backend-qjs-disable-async`)"
                        .to_owned(),
                ));
            }
        }
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn malformed(error: wasmparser::BinaryReaderError) -> Error {
    Error::Refused(format!(
        "it is malformed at byte {}: {}; upload it again, or build it again",
        error.offset(),
        error.message()
    ))
}
