//! What an upload must be: a well-formed component of our world.

use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentCanonicalSectionReader, Parser, Payload,
    Validator, WasmFeatures,
};
use wit_component::DecodedWasm;

use super::{Refused, contract, encode, expansion};
use crate::module::answer::{Answer, Found, IMPORTS_MAX, is_name};
use crate::module::upload;
use crate::schemas::{self, EventSchema, SECTION};

/// Deepest nesting of components. What composers make has two or three levels; the time to check
/// grows with the square.
const DEPTH_MAX: usize = 32;
/// Most components and core modules in an upload; composed ones have some dozens.
const PARTS_MAX: usize = 1_000;

/// Checks an upload, and encodes a core module as a component.
pub(super) fn accept(upload: &[u8], bytes_max: u64) -> Answer {
    let checked = match upload::kind(upload) {
        Ok(upload::Kind::Component) => found(upload).map(|found| (found, None)),
        Ok(upload::Kind::Core) => from_core(upload, bytes_max),
        Err(words) => Err(Refused(words.to_owned())),
    };
    match checked {
        Ok((found, component)) => Answer::Checked { found, component },
        Err(Refused(words)) => Answer::Refused(words),
    }
}

fn from_core(module: &[u8], bytes_max: u64) -> Result<(Found, Option<Vec<u8>>), Refused> {
    let component = encode::component(module)?;
    if component.len() as u64 > bytes_max {
        return Err(format!(
            "as a component it has {} bytes, {bytes_max} are allowed",
            component.len()
        )
        .into());
    }
    Ok((found(&component)?, Some(component)))
}

/// Checks a component; returns what it imports and carries.
fn found(component: &[u8]) -> Result<Found, Refused> {
    Ok(Found {
        imports: imports(component)?,
        schemas: carried(component)?,
    })
}

/// The schemas that a component carries, checked.
fn carried(component: &[u8]) -> Result<Vec<EventSchema>, Refused> {
    let Some(content) = section(component)? else {
        return Ok(Vec::new());
    };
    let refused = |error: schemas::Error| Refused(error.to_string());
    let carried = schemas::parse(content).map_err(refused)?;
    schemas::check(&carried).map_err(refused)?;
    Ok(carried)
}

/// The content of the section of schemas of a component or core module. Those of parts inside do
/// not count.
pub(super) fn section(module: &[u8]) -> Result<Option<&[u8]>, Refused> {
    let (mut depth, mut found) = (0_usize, None);
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(malformed)? {
            Payload::ComponentSection { .. } | Payload::ModuleSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if depth == 0 && section.name() == SECTION => {
                let earlier = found.replace(section.data());
                if earlier.is_some() {
                    return Err(Refused(format!(
                        "it has two sections `{SECTION}`; attach schemas once"
                    )));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Checks a component; returns the interfaces that it imports.
fn imports(component: &[u8]) -> Result<Vec<String>, Refused> {
    look_through(component)?;
    expansion::check(component)?;
    Validator::new_with_features(WasmFeatures::default())
        .validate_all(component)
        .map_err(malformed)?;
    let (resolve, world) = match wit_component::decode(component) {
        Ok(DecodedWasm::Component(resolve, world)) => (resolve, world),
        Ok(DecodedWasm::WitPackage(..)) => {
            return Err(Refused(
                "it is a WIT package in binary form, without code".to_owned(),
            ));
        }
        Err(error) => return Err(format!("its types cannot be read: {error:#}").into()),
    };
    let imports = contract::check(&resolve, world)?;
    // The host takes an answer beyond these bounds for a broken one, and could not say why.
    if imports.len() > IMPORTS_MAX || !imports.iter().all(|name| is_name(name)) {
        return Err(format!(
            "it imports {} interfaces; import at most {IMPORTS_MAX}, of usual names",
            imports.len()
        )
        .into());
    }
    Ok(imports)
}

/// Refuses what the parsers behind this would be at for long, and what they refuse in words that do
/// not help.
fn look_through(component: &[u8]) -> Result<(), String> {
    let (mut depth, mut parts) = (0_usize, 0_usize);
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::ComponentSection { .. } | Payload::ModuleSection { .. } => {
                depth += 1;
                parts += 1;
            }
            // The outermost component ends as well, although no section has counted it.
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentCanonicalSection(section) => refuse_async(section)?,
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(format!(
                "it has components inside components, deeper than {DEPTH_MAX}; compose it flatter"
            ));
        }
        if parts > PARTS_MAX {
            return Err(format!(
                "it is made of more than {PARTS_MAX} components and core modules; compose it of \
                 fewer"
            ));
        }
    }
    Ok(())
}

/// Refuses components that are built for the asynchronous calling convention, with advice.
fn refuse_async(section: ComponentCanonicalSectionReader<'_>) -> Result<(), String> {
    for function in section {
        let options = match function.map_err(malformed)? {
            CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => {
                options
            }
            _ => continue,
        };
        if options.iter().any(|option| {
            matches!(
                option,
                CanonicalOption::Async | CanonicalOption::Callback(_)
            )
        }) {
            return Err(
                "it is built for asynchronous calls, which this host does not support; build it \
                        for synchronous ones (componentize-qjs: `--sync`, jco: \
                        `--backend-qjs-disable-async`)"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

/// The message about bytes that are not well formed.
#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
pub(super) fn malformed(error: wasmparser::BinaryReaderError) -> String {
    format!(
        "it is malformed at byte {}: {}; upload it again, or build it again",
        error.offset(),
        error.message()
    )
}
