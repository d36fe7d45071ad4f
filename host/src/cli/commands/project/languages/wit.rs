//! The contract as files, from which tools of other languages make their bindings.

use std::path::Path;

use anyhow::Context as _;

use super::Exports;

/// The files of our package.
const CONTRACT: [(&str, &str); 3] = [
    (
        "foldstream.wit",
        include_str!("../../../../../../wit/foldstream.wit"),
    ),
    (
        "handler.wit",
        include_str!("../../../../../../wit/handler.wit"),
    ),
    ("inbox.wit", include_str!("../../../../../../wit/inbox.wit")),
];
/// The world of a module with all that its SDK exports.
fn guest(exports: Exports) -> String {
    let world = exports.world();
    format!(
        "\
package foldstream:guest;

world guest {{
  include foldstream:module/{world}@0.1.0;
  include foldstream:module/with-inbox@0.1.0;
}}
"
    )
}

/// The name of that world.
pub(super) const WORLD: &str = "guest";

/// Writes the contract, and the world that guests export, into a folder.
pub(super) fn write(folder: &Path, exports: Exports) -> anyhow::Result<()> {
    let package = folder.join("deps/foldstream");
    std::fs::create_dir_all(&package)
        .and_then(|()| std::fs::write(folder.join("guest.wit"), guest(exports)))
        .and_then(|()| {
            CONTRACT
                .iter()
                .try_for_each(|(name, text)| std::fs::write(package.join(name), text))
        })
        .with_context(|| format!("cannot write the contract to {}", folder.display()))
}
