//! How large a component becomes once each component inside it is instantiated.
//!
//! The compiler writes out every instance of every component. Components that instantiate others
//! twice, each of them others twice, and so on, need thirty levels and a kilobyte for a billion.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind,
    ComponentTypeRef, Parser, Payload,
};

use super::accept::malformed;

/// Most core instances and canonical functions of a component, counted once for each instance of
/// the component that has them. Each takes some hundred bytes once it is compiled; composed
/// components have some thousand.
const ITEMS_MAX: u64 = 100_000;

/// What is known of a component, or of a core module, up to where it was read.
#[derive(Default)]
struct Part {
    is_component: bool,
    /// The items of each component that it can instantiate, in the order of their index space.
    components: Vec<u64>,
    /// Its own items, and those of the instances inside it.
    items: u64,
}

/// Refuses a component that becomes too large. Invalid indices are left to the validator.
pub(super) fn check(component: &[u8]) -> Result<(), String> {
    let mut open: Vec<Part> = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(malformed)?;
        match &payload {
            Payload::Version { encoding, .. } => open.push(Part {
                is_component: *encoding == wasmparser::Encoding::Component,
                ..Part::default()
            }),
            Payload::End(_) => {
                let Some(ended) = open.pop() else { break };
                if ended.items > ITEMS_MAX {
                    return Err(format!(
                        "its components instantiate each other to more than {ITEMS_MAX} instances \
                         and functions; compose it of fewer"
                    ));
                }
                if let Some(outer) = open.last_mut().filter(|_| ended.is_component) {
                    outer.components.push(ended.items);
                }
            }
            _ => count(&mut open, payload)?,
        }
    }
    Ok(())
}

/// Counts what a section adds to the innermost open part.
fn count(open: &mut [Part], payload: Payload<'_>) -> Result<(), String> {
    let Some((part, outer)) = open.split_last_mut() else {
        return Ok(());
    };
    match payload {
        Payload::InstanceSection(section) => part.add(section.count().into()),
        Payload::ComponentCanonicalSection(section) => part.add(section.count().into()),
        Payload::ComponentInstanceSection(section) => {
            for instance in section {
                if let ComponentInstance::Instantiate {
                    component_index, ..
                } = instance.map_err(malformed)?
                {
                    let items = part.items_of(component_index);
                    // One more: an empty component takes room too.
                    part.add(items.saturating_add(1));
                }
            }
        }
        Payload::ComponentImportSection(section) => {
            for import in section {
                let import = import.map_err(malformed)?;
                if matches!(import.ty, ComponentTypeRef::Component(_)) {
                    return Err(unknown("imports"));
                }
            }
        }
        Payload::ComponentAliasSection(section) => {
            for alias in section {
                match alias.map_err(malformed)? {
                    ComponentAlias::Outer {
                        kind: ComponentOuterAliasKind::Component,
                        count,
                        index,
                    } => {
                        let items = match (count as usize).checked_sub(1) {
                            None => part.items_of(index),
                            Some(further) => outer
                                .iter()
                                .rev()
                                .nth(further)
                                .map_or(0, |outer| outer.items_of(index)),
                        };
                        part.components.push(items);
                    }
                    ComponentAlias::InstanceExport {
                        kind: ComponentExternalKind::Component,
                        ..
                    } => return Err(unknown("takes from an instance")),
                    _ => {}
                }
            }
        }
        Payload::ComponentExportSection(section) => {
            for export in section {
                let export = export.map_err(malformed)?;
                if export.kind == ComponentExternalKind::Component {
                    // Exporting gives it another index.
                    part.components.push(part.items_of(export.index));
                }
            }
        }
        _ => {}
    }
    Ok(())
}

impl Part {
    fn add(&mut self, items: u64) {
        self.items = self.items.saturating_add(items);
    }

    fn items_of(&self, component: u32) -> u64 {
        let items = self.components.get(component as usize);
        items.copied().unwrap_or(0)
    }
}

fn unknown(how: &str) -> String {
    format!(
        "a component inside it {how} another component, which is not supported; embed it instead"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), String> {
        check(&wat::parse_str(text).expect("the text is well-formed"))
    }

    /// Components of which each instantiates the one before twice.
    fn doubled(levels: usize) -> String {
        let mut text =
            "(component (component $c0 (core module $m) (core instance (instantiate $m)))"
                .to_owned();
        for level in 1..=levels {
            let before = level - 1;
            text += &format!(
                "(component $c{level} (alias outer 1 $c{before} (component $c)) (instance \
                 (instantiate $c)) (instance (instantiate $c)))"
            );
        }
        text + &format!("(instance (instantiate $c{levels})))")
    }

    /// The same, one inside the other.
    fn nested(levels: usize) -> String {
        let mut text = "(core module $m) (core instance (instantiate $m))".to_owned();
        for _ in 0..levels {
            text = format!(
                "(component $c {text}) (instance (instantiate $c)) (instance (instantiate $c))"
            );
        }
        format!("(component {text})")
    }

    #[test]
    fn instances_of_instances_are_counted_however_they_are_written() {
        for text in [doubled, nested] {
            checked(&text(10)).expect("some thousand are few");
            let words = checked(&text(20)).expect_err("a million is too many");
            assert!(words.contains("more than 100000"), "{words}");
        }
        // As many as fit into no number.
        checked(&doubled(100)).expect_err("too many");
    }

    #[test]
    fn components_that_come_from_elsewhere_are_refused() {
        let taken =
            "(component (component (import \"c\" (component $c)) (instance (instantiate $c))))";
        let words = checked(taken).expect_err("its size is unknown");
        assert!(words.contains("imports another component"), "{words}");
    }
}
