//! The contract of `wit/`, and the check of components against it.

use std::sync::LazyLock;

use wit_parser::{
    Function, FunctionKind, Resolve, Type, TypeDefKind, WorldId, WorldItem, WorldKey,
};

use super::Refused;

/// The contract as text, compiled into this program; core modules are encoded against it.
const TEXT: &str = concat!(
    include_str!("../../../../wit/foldstream.wit"),
    "\n",
    include_str!("../../../../wit/handler.wit"),
    "\n",
    include_str!("../../../../wit/inbox.wit")
);
/// The interface of the stub of WASI preview 1, which encoded core modules have inside.
const STUB_TEXT: &str = include_str!("preview1.wit");
/// The world of that stub.
const STUB_WORLD: &str = "stub";
/// Our package, without its version.
pub(super) const PACKAGE: &str = "foldstream:module";
/// The world of projections, which every module exports.
const WORLD: &str = "projection";
/// The world of handlers.
const HANDLER_WORLD: &str = "handler";
/// The export that tells a handler from a projection.
pub(super) const HANDLE: &str = "handle";
/// The world of migrating projections, with the additional optional exports.
const MIGRATING_WORLD: &str = "migrating-projection";
/// The same for handlers.
const MIGRATING_HANDLER_WORLD: &str = "migrating-handler";
/// The world of what any module may export in addition.
const INBOX_WORLD: &str = "with-inbox";
/// The WASI interfaces that a component may import, in versions 0.2.
const WASI_PACKAGES: [&str; 6] = [
    "wasi:io/",
    "wasi:clocks/",
    "wasi:random/",
    "wasi:cli/",
    "wasi:filesystem/",
    "wasi:sockets/",
];
/// Deepest nesting of types to compare; the contract's own are far shallower.
const DEPTH_MAX: usize = 32;

/// The parsed contract.
pub(super) struct Contract {
    pub(super) resolve: Resolve,
    pub(super) world: WorldId,
    pub(super) migrating_world: WorldId,
    pub(super) handler_world: WorldId,
    pub(super) migrating_handler_world: WorldId,
    pub(super) inbox_world: WorldId,
    pub(super) stub_world: WorldId,
}

/// The contract, parsed once.
pub(super) static CONTRACT: LazyLock<Contract> = LazyLock::new(|| {
    let mut resolve = Resolve::default();
    let package = resolve
        .push_source("foldstream.wit", TEXT)
        .expect("the contract is valid: a test parses it");
    let world = |name| {
        resolve
            .select_world(&[package], Some(name))
            .expect("the contract has the world")
    };
    let [
        world,
        migrating_world,
        handler_world,
        migrating_handler_world,
        inbox_world,
    ] = [
        WORLD,
        MIGRATING_WORLD,
        HANDLER_WORLD,
        MIGRATING_HANDLER_WORLD,
        INBOX_WORLD,
    ]
    .map(world);
    let stub = resolve
        .push_source("preview1.wit", STUB_TEXT)
        .expect("the stub's interface is valid: a test parses it");
    let stub_world = resolve
        .select_world(&[stub], Some(STUB_WORLD))
        .expect("the package has the world");
    Contract {
        resolve,
        world,
        migrating_world,
        handler_world,
        migrating_handler_world,
        inbox_world,
        stub_world,
    }
});

/// Checks the imports and exports of a component's world; returns the interfaces that it imports.
pub(super) fn check(resolve: &Resolve, world: WorldId) -> Result<Vec<String>, Refused> {
    let kind = Kind::of(resolve, world);
    let imports = check_imports(resolve, world, kind)?;
    check_exports(resolve, world, kind)?;
    Ok(imports)
}

/// The kinds of modules, by what they export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Projection,
    Handler,
}

impl Kind {
    fn of(resolve: &Resolve, world: WorldId) -> Self {
        let exports = &resolve.worlds[world].exports;
        let handles = exports
            .keys()
            .any(|key| resolve.name_world_key(key) == HANDLE);
        if handles {
            Self::Handler
        } else {
            Self::Projection
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Projection => WORLD,
            Self::Handler => HANDLER_WORLD,
        }
    }

    /// The world with everything that a module of this kind must have.
    fn required(self) -> WorldId {
        match self {
            Self::Projection => CONTRACT.world,
            Self::Handler => CONTRACT.handler_world,
        }
    }

    /// The world that also has what it may leave out.
    fn largest(self) -> WorldId {
        match self {
            Self::Projection => CONTRACT.migrating_world,
            Self::Handler => CONTRACT.migrating_handler_world,
        }
    }
}

fn check_imports(resolve: &Resolve, world: WorldId, kind: Kind) -> Result<Vec<String>, String> {
    let mut allowed = Vec::new();
    let mut offending = Vec::new();
    for (key, item) in &resolve.worlds[world].imports {
        let name = resolve.name_world_key(key);
        match item {
            // Types alone give access to nothing.
            WorldItem::Type { .. } => {}
            WorldItem::Interface { id, .. } if is_allowed(&name, kind) => {
                if let Some(ours) = our_interface(&name, kind) {
                    // A component lists only the functions that it calls, so it may lack some of
                    // ours.
                    for (function, theirs) in &resolve.interfaces[*id].functions {
                        let ours = ours.iter().find(|ours| ours.name == *function).ok_or_else(|| {
                            format!(
                                "it imports `{function}` of {name}, which does not exist; build it \
                                 with a matching SDK"
                            )
                        })?;
                        same_function(resolve, theirs, ours).map_err(|difference| {
                            differs(&format!("{name} `{function}`"), &difference)
                        })?;
                    }
                }
                allowed.push(name);
            }
            _ => offending.push(name),
        }
    }
    if !offending.is_empty() {
        return Err(format!(
            "it imports interfaces that a {} must not use: {}; allowed are {PACKAGE} {} and WASI \
             0.2 {}",
            kind.name(),
            offending.join(", "),
            our_version(),
            WASI_PACKAGES
                .map(|package| package.trim_start_matches("wasi:").trim_end_matches('/'))
                .join(", ")
        ));
    }
    Ok(allowed)
}

fn is_allowed(name: &str, kind: Kind) -> bool {
    let is_wasi = WASI_PACKAGES
        .iter()
        .any(|package| name.starts_with(package))
        && name.contains("@0.2.");
    is_wasi || our_interface(name, kind).is_some()
}

/// The functions of an interface that a module of this kind may import.
fn our_interface(name: &str, kind: Kind) -> Option<Vec<&'static Function>> {
    let resolve = &CONTRACT.resolve;
    let imports = |world: WorldId| resolve.worlds[world].imports.iter();
    imports(kind.required())
        .chain(imports(CONTRACT.inbox_world))
        .chain(imports(CONTRACT.stub_world))
        .find_map(|(key, item)| match (key, item) {
            (WorldKey::Interface(_), WorldItem::Interface { id, .. })
                if resolve.name_world_key(key) == name =>
            {
                Some(resolve.interfaces[*id].functions.values().collect())
            }
            _ => None,
        })
}

fn our_version() -> String {
    let Contract { resolve, world, .. } = &*CONTRACT;
    let package = resolve.worlds[*world]
        .package
        .expect("a parsed world has a package");
    resolve.packages[package]
        .name
        .version
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default()
}

fn check_exports(resolve: &Resolve, world: WorldId, kind: Kind) -> Result<(), String> {
    let contract = &*CONTRACT;
    let required = &contract.resolve.worlds[kind.required()].exports;
    let mut missing = Vec::new();
    let inbox = &contract.resolve.worlds[contract.inbox_world].exports;
    // The larger world has the exports of the smaller one, plus those that a module may leave out.
    for (key, item) in contract.resolve.worlds[kind.largest()]
        .exports
        .iter()
        .chain(inbox)
    {
        let WorldItem::Function(ours) = item else {
            continue;
        };
        let found = resolve.worlds[world]
            .exports
            .iter()
            .find(|(other, _)| resolve.name_world_key(other) == ours.name);
        let export = format!("export `{}`", ours.name);
        match found {
            Some((_, WorldItem::Function(theirs))) => {
                same_function(resolve, theirs, ours)
                    .map_err(|difference| differs(&export, &difference))?;
            }
            Some(_) => return Err(differs(&export, "it is not a function")),
            None if required.contains_key(key) => missing.push(format!("`{}`", ours.name)),
            None => {}
        }
    }
    if !missing.is_empty() {
        return Err(format!(
            "it does not export {}, so it is not a {} of {PACKAGE}; build it with an SDK, or for a \
             world in wit/",
            missing.join(", "),
            kind.name()
        ));
    }
    Ok(())
}

fn differs(what: &str, difference: &str) -> String {
    format!(
        "its {what} differs from the contract {}: {difference}; build it with a matching SDK",
        our_version()
    )
}

/// Compares a function with the contract's.
fn same_function(resolve: &Resolve, theirs: &Function, ours: &Function) -> Result<(), String> {
    if theirs.kind != FunctionKind::Freestanding {
        return Err("it is asynchronous or a method; this host calls plain functions".to_owned());
    }
    if theirs.params.len() != ours.params.len() {
        return Err(format!(
            "{} parameters instead of {}",
            theirs.params.len(),
            ours.params.len()
        ));
    }
    let compare = Compare {
        theirs: resolve,
        ours: &CONTRACT.resolve,
    };
    for (their, our) in theirs.params.iter().zip(&ours.params) {
        compare
            .types(&their.ty, &our.ty, 0)
            .map_err(|difference| format!("parameter `{}`: {difference}", our.name))?;
    }
    compare
        .optional(theirs.result.as_ref(), ours.result.as_ref(), 0)
        .map_err(|difference| format!("result: {difference}"))
}

/// Compares types of two worlds by structure and by the names inside.
struct Compare<'a> {
    theirs: &'a Resolve,
    ours: &'a Resolve,
}

impl Compare<'_> {
    fn types(&self, theirs: &Type, ours: &Type, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err("types nest too deeply".to_owned());
        }
        let (theirs, ours) = (resolved(self.theirs, theirs), resolved(self.ours, ours));
        let (Type::Id(their_id), Type::Id(our_id)) = (theirs, ours) else {
            let same = theirs == ours && !matches!(theirs, Type::Id(_));
            return if same {
                Ok(())
            } else {
                Err(self.other_kind(theirs, ours))
            };
        };
        let depth = depth + 1;
        match (
            &self.theirs.types[their_id].kind,
            &self.ours.types[our_id].kind,
        ) {
            (TypeDefKind::Record(their), TypeDefKind::Record(our)) => {
                let field = |field: &wit_parser::Field| (field.name.clone(), Some(field.ty));
                self.members(
                    their.fields.iter().map(field),
                    our.fields.iter().map(field),
                    depth,
                )
            }
            (TypeDefKind::Variant(their), TypeDefKind::Variant(our)) => {
                let case = |case: &wit_parser::Case| (case.name.clone(), case.ty);
                self.members(
                    their.cases.iter().map(case),
                    our.cases.iter().map(case),
                    depth,
                )
            }
            (TypeDefKind::Enum(their), TypeDefKind::Enum(our)) => {
                let case = |case: &wit_parser::EnumCase| (case.name.clone(), None);
                self.members(
                    their.cases.iter().map(case),
                    our.cases.iter().map(case),
                    depth,
                )
            }
            (TypeDefKind::Tuple(their), TypeDefKind::Tuple(our)) => {
                let element = |(index, ty): (usize, &Type)| (index.to_string(), Some(*ty));
                let (their, our) = (their.types.iter().enumerate(), our.types.iter().enumerate());
                self.members(their.map(element), our.map(element), depth)
            }
            (TypeDefKind::Option(their), TypeDefKind::Option(our))
            | (TypeDefKind::List(their), TypeDefKind::List(our)) => self.types(their, our, depth),
            (TypeDefKind::Result(their), TypeDefKind::Result(our)) => {
                self.optional(their.ok.as_ref(), our.ok.as_ref(), depth)?;
                self.optional(their.err.as_ref(), our.err.as_ref(), depth)
            }
            _ => Err(self.other_kind(theirs, ours)),
        }
    }

    fn optional(
        &self,
        theirs: Option<&Type>,
        ours: Option<&Type>,
        depth: usize,
    ) -> Result<(), String> {
        match (theirs, ours) {
            (None, None) => Ok(()),
            (Some(theirs), Some(ours)) => self.types(theirs, ours, depth),
            (Some(_), None) => Err("a value where the contract has none".to_owned()),
            (None, Some(_)) => Err("no value where the contract has one".to_owned()),
        }
    }

    /// Fields, cases or elements, whose names, order and types must agree.
    fn members(
        &self,
        theirs: impl ExactSizeIterator<Item = (String, Option<Type>)>,
        ours: impl ExactSizeIterator<Item = (String, Option<Type>)>,
        depth: usize,
    ) -> Result<(), String> {
        if theirs.len() != ours.len() {
            return Err(format!(
                "{} members instead of {}",
                theirs.len(),
                ours.len()
            ));
        }
        // Their order counts as well: the canonical ABI numbers cases and lays out fields by it.
        for ((their_name, their_type), (our_name, our_type)) in theirs.zip(ours) {
            if their_name != our_name {
                return Err(format!("`{their_name}` instead of `{our_name}`"));
            }
            self.optional(their_type.as_ref(), our_type.as_ref(), depth)
                .map_err(|difference| format!("`{our_name}`: {difference}"))?;
        }
        Ok(())
    }

    fn other_kind(&self, theirs: Type, ours: Type) -> String {
        format!(
            "{} instead of {}",
            kind(self.theirs, theirs),
            kind(self.ours, ours)
        )
    }
}

/// The type behind its aliases.
fn resolved(resolve: &Resolve, ty: &Type) -> Type {
    let mut ty = *ty;
    while let Type::Id(id) = ty
        && let TypeDefKind::Type(target) = &resolve.types[id].kind
    {
        ty = *target;
    }
    ty
}

fn kind(resolve: &Resolve, ty: Type) -> String {
    match ty {
        Type::Id(id) => resolve.types[id].kind.as_str().to_owned(),
        primitive => format!("{primitive:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(wit: &str) -> Result<Vec<String>, String> {
        verdict_on(wit, WORLD)
    }

    fn verdict_on(wit: &str, world: &str) -> Result<Vec<String>, String> {
        let mut resolve = Resolve::default();
        let package = resolve.push_source("test.wit", wit).expect("valid");
        let world = resolve
            .select_world(&[package], Some(world))
            .expect("has the world");
        check(&resolve, world).map_err(|Refused(words)| words)
    }

    #[test]
    fn contract_keeps_to_itself() {
        let imports = verdict(TEXT).expect("is the same");
        assert!(
            imports.contains(&crate::module::imports::STATE.to_owned()),
            "{imports:?}"
        );
        assert!(
            imports.contains(&crate::module::imports::LOG.to_owned()),
            "{imports:?}"
        );
        assert_eq!(
            verdict_on(TEXT, MIGRATING_WORLD).expect("is the same"),
            imports,
            "migrating needs no more"
        );
    }

    #[test]
    fn migrate_may_be_left_out_but_not_be_another_function() {
        let migrate = "export migrate: func(from-version: u32, entries: list<entry>) -> \
                       result<list<entry>, string>;";
        assert!(TEXT.contains(migrate));
        verdict_on(&TEXT.replace(migrate, ""), MIGRATING_WORLD).expect("is a plain projection");
        verdict_on(&TEXT.replace(migrate, ""), MIGRATING_HANDLER_WORLD)
            .expect("is a plain handler");
        verdict_on(TEXT, MIGRATING_HANDLER_WORLD).expect("is the same");
        for (other, difference) in [
            (
                "export migrate: func(entries: list<entry>);",
                "1 parameters instead of 2",
            ),
            (
                &*migrate.replace("u32", "u64"),
                "parameter `from-version`: u64 instead of u32",
            ),
            (
                &*migrate.replace("result<list<entry>, string>", "list<entry>"),
                "result: list instead of result",
            ),
            (
                &*migrate.replace("entries: list<entry>", "entries: list<string>"),
                "parameter `entries`: string instead",
            ),
            (
                "export migrate: interface { run: func(); }",
                "it is not a function",
            ),
        ] {
            let error =
                verdict_on(&TEXT.replace(migrate, other), MIGRATING_WORLD).expect_err("is another");
            assert!(
                error.contains("export `migrate` differs") && error.contains(difference),
                "{other}: {error}"
            );
            let error = verdict_on(&TEXT.replace(migrate, other), MIGRATING_HANDLER_WORLD)
                .expect_err("is another");
            assert!(
                error.contains("export `migrate` differs"),
                "{other}: {error}"
            );
        }
    }

    #[test]
    fn inbox_may_be_exported_by_any_module_but_not_be_another_function() {
        let inbox = "export inbox: func() -> option<inbox-settings>;";
        for world in [
            WORLD,
            MIGRATING_WORLD,
            HANDLER_WORLD,
            MIGRATING_HANDLER_WORLD,
        ] {
            let beginning = format!("world {world} {{");
            let with = |export: &str| {
                TEXT.replace(
                    &beginning,
                    &format!("{beginning}\n use inboxes.{{inbox-settings}}; {export}"),
                )
            };
            verdict_on(&with(inbox), world).expect("is the same");
            let error = verdict_on(&with("export inbox: func() -> inbox-settings;"), world);
            assert!(
                error
                    .as_ref()
                    .is_err_and(|error| error.contains("export `inbox` differs")),
                "{world}: {error:?}"
            );
        }
    }

    #[test]
    fn only_handlers_may_publish() {
        let imports = verdict_on(TEXT, HANDLER_WORLD).expect("is the same");
        assert!(
            imports.contains(&crate::module::imports::OUTBOX.to_owned()),
            "{imports:?}"
        );
        let smuggled = TEXT.replace("world projection {", "world projection {\n  import outbox;");
        let error = verdict(&smuggled).expect_err("a projection has no effects");
        assert!(
            error.contains("a projection must not use") && error.contains("/outbox@0.1.0"),
            "{error}"
        );
        let error = verdict_on(
            &TEXT.replace("kind: option<string>,", "kind: string,"),
            HANDLER_WORLD,
        );
        assert!(
            error
                .as_ref()
                .is_err_and(|error| error.contains("`publish`")),
            "{error:?}"
        );
    }

    #[test]
    fn missing_export_is_named() {
        let error =
            verdict(&TEXT.replace("export apply:", "export applied:")).expect_err("lacks apply");
        assert!(error.contains("`apply`"), "{error}");
    }

    #[test]
    fn difference_in_a_type_is_named() {
        let error = verdict(&TEXT.replace("time-ns: u64", "time-ms: u64")).expect_err("differs");
        assert!(
            error.contains("`apply`") && error.contains("`time-ms` instead of `time-ns`"),
            "{error}"
        );
        let error = verdict(&TEXT.replace("sequence: u64", "sequence: u32")).expect_err("differs");
        assert!(error.contains("u32 instead of u64"), "{error}");
        let error = verdict(&TEXT.replace("put: func(key: string, value", "put: func(value"))
            .expect_err("differs");
        assert!(
            error.contains("`put`") && error.contains("1 parameters instead of 2"),
            "{error}"
        );
    }

    #[test]
    fn forbidden_import_is_named_with_what_is_allowed() {
        let forbidden = "interface evil { steal: func(); }\nworld projection {\n  import evil;";
        let error =
            verdict(&TEXT.replace("world projection {", forbidden)).expect_err("is forbidden");
        assert!(
            error.contains("foldstream:module/evil@0.1.0") && error.contains("allowed are"),
            "{error}"
        );
    }
}
