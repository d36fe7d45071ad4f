//! Encodes core modules as components, so that nobody needs a further tool.
//!
//! A core module from a contract-aware tool has a custom section that says which world it
//! implements. A module without it is assumed to implement one of ours, which its exports show. A
//! stub inside the component implements WASI preview 1, which Go and older C libraries use.

use std::sync::LazyLock;

use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

use super::Refused;
use super::accept::{malformed, section};
use super::contract::{CONTRACT, Contract, HANDLE};
use crate::module::inbox::INBOX;
use crate::schemas;

/// The module name under which preview 1 is imported.
const PREVIEW1: &str = "wasi_snapshot_preview1";
/// Prefix of custom sections that describe a module's world.
const TYPE_SECTION: &str = "component-type";
/// The export that distinguishes a module that migrates.
const MIGRATE: &str = "migrate";

/// The stub, with the section that names its world.
static STUB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let Contract {
        resolve,
        stub_world,
        ..
    } = &*CONTRACT;
    let mut module = include_bytes!("preview1.wasm").to_vec();
    embed_component_metadata(&mut module, resolve, *stub_world, StringEncoding::UTF8)
        .expect("the world can be embedded");
    module
});

/// The properties of a core module that matter for encoding.
#[derive(Default)]
struct Outline {
    names_its_world: bool,
    migrates: bool,
    handles: bool,
    has_inbox: bool,
    uses_preview1: bool,
}

/// Encodes a core module as a component.
pub(super) fn component(module: &[u8]) -> Result<Vec<u8>, Refused> {
    let outline = outline(module)?;
    let schemas = section(module)?;
    let encoded = component_of(module, &outline)?;
    // Those of a core module belong to the component that is made of it.
    Ok(match schemas {
        Some(content) => schemas::attach(&encoded, content),
        None => encoded,
    })
}

fn component_of(module: &[u8], outline: &Outline) -> Result<Vec<u8>, Refused> {
    let mut module = module.to_vec();
    if !outline.names_its_world {
        let Contract {
            resolve,
            world,
            migrating_world,
            handler_world,
            migrating_handler_world,
            inbox_world,
            ..
        } = &*CONTRACT;
        // The encoder insists on every export of a world, so each set of exports needs its own.
        let world = match (outline.handles, outline.migrates) {
            (true, true) => *migrating_handler_world,
            (true, false) => *handler_world,
            (false, true) => *migrating_world,
            (false, false) => *world,
        };
        embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8)
            .map_err(|error| format!("cannot describe the core module: {error:#}"))?;
        if outline.has_inbox {
            embed_component_metadata(&mut module, resolve, *inbox_world, StringEncoding::UTF8)
                .map_err(|error| format!("cannot describe the core module: {error:#}"))?;
        }
    }
    let encoded = encode(&module, outline).map_err(|error| {
        if outline.names_its_world {
            return format!("it is a core module that cannot be encoded as a component: {error}");
        }
        format!(
            "it is a core module without a `{TYPE_SECTION}` section, and does not match the \
             contract as it is: {error}; build it with an SDK, or keep that section when stripping"
        )
    });
    Ok(encoded?)
}

fn outline(module: &[u8]) -> Result<Outline, String> {
    let mut outline = Outline::default();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(malformed)?;
        match payload {
            Payload::CustomSection(section) => {
                outline.names_its_world |= section.name().starts_with(TYPE_SECTION);
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(malformed)?;
                    outline.uses_preview1 |= import.module == PREVIEW1;
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let name = export.map_err(malformed)?.name;
                    outline.migrates |= name == MIGRATE;
                    outline.handles |= name == HANDLE;
                    outline.has_inbox |= name == INBOX;
                }
            }
            _ => {}
        }
    }
    Ok(outline)
}

fn encode(module: &[u8], outline: &Outline) -> Result<Vec<u8>, String> {
    let text = |error| format!("{error:#}");
    let mut encoder = ComponentEncoder::default()
        .validate(true)
        .module(module)
        .map_err(text)?;
    if outline.uses_preview1 {
        encoder = encoder.adapter(PREVIEW1, &STUB).map_err(text)?;
    }
    encoder.encode().map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stub_is_its_text_compiled_and_names_its_world() {
        let compiled = wat::parse_str(include_str!("preview1.wat")).expect("valid");
        assert!(
            compiled == include_bytes!("preview1.wasm"),
            "compile the text again: wasm-tools parse preview1.wat -o preview1.wasm"
        );
        assert!(STUB.len() > compiled.len());
    }

    #[test]
    fn core_module_without_exports_is_refused_with_reasons() {
        let module = wat::parse_str("(module)").expect("valid");
        let Refused(error) = component(&module).expect_err("has no exports");
        assert!(
            error.contains("component-type") && error.contains("manifest"),
            "{error}"
        );
    }

    #[test]
    fn core_module_that_exports_migrate_is_of_the_larger_world() {
        let module = |migrate: &str| {
            format!(
                r#"(module
                    (memory (export "memory") 1)
                    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
                    (func (export "manifest") (result i32) unreachable)
                    (func (export "apply") (param i32 i32) (result i32) unreachable)
                    (func (export "query") (param i32 i32 i32 i32 i32) (result i32) unreachable)
                    {migrate})"#
            )
        };
        let encoded = |migrate: &str| component(&wat::parse_str(module(migrate)).expect("valid"));
        let exports =
            |component: &[u8]| match wit_component::decode(component).expect("is a component") {
                wit_component::DecodedWasm::Component(resolve, world) => {
                    resolve.worlds[world].exports.len()
                }
                wit_component::DecodedWasm::WitPackage(..) => panic!("no component"),
            };
        assert_eq!(exports(&encoded("").expect("is a projection")), 3);
        let migrate = r#"(func (export "migrate") (param i32 i32 i32) (result i32) unreachable)"#;
        assert_eq!(
            exports(&encoded(migrate).expect("is a migrating projection")),
            4
        );
        let Refused(error) =
            encoded(r#"(func (export "migrate") (param i64))"#).expect_err("has another type");
        assert!(error.contains("migrate"), "{error}");
    }
}
