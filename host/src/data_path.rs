//! How texts name a file of the data folder: by its path within that folder. Texts of errors leave
//! the host, and where its data folder is concerns nobody but its operator.

use std::path::{Display, Path};

/// Folders of the data folder that have a folder for each deployment.
const OF_DEPLOYMENTS: [&str; 3] = ["state", "snapshots", "failures"];
/// Folders of the data folder that have files.
const OF_FILES: [&str; 4] = ["log", "modules", "scratch", "cache"];

/// The path of a file within its data folder, such as `state/orders/1.redb`; of any other file its
/// name.
pub(crate) fn within(path: &Path) -> Display<'_> {
    // The folder is known by its place, because a deployment may be called `log`. If the data folder
    // itself is called like one of its folders, its name may be shown too.
    let tail = |depth: usize, names: &[&str]| {
        let root = path.ancestors().nth(depth)?;
        let tail = path.strip_prefix(root).ok()?;
        names
            .iter()
            .any(|name| tail.starts_with(name))
            .then_some(tail)
    };
    tail(3, &OF_DEPLOYMENTS)
        .or_else(|| tail(2, &OF_FILES))
        .or_else(|| tail(2, &OF_DEPLOYMENTS))
        .or_else(|| path.file_name().map(Path::new))
        .unwrap_or(path)
        .display()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_without_the_place_of_its_data_folder() {
        for file in [
            "state/orders/1.redb",
            "state/log/1.redb",
            "snapshots/orders/1-2-3.redb",
            "snapshots/orders",
            "log/events.redb",
            "scratch/7.redb",
            "catalog.redb",
            "catalog.newest",
        ] {
            for root in ["/", "/srv/data", "data", ""] {
                let path = Path::new(root).join(file);
                assert_eq!(within(&path).to_string(), file, "{}", path.display());
            }
            for name in ["state", "log"] {
                let shown = within(&Path::new("/srv").join(name).join(file)).to_string();
                assert!(
                    shown == file || shown == format!("{name}/{file}"),
                    "{shown}"
                );
            }
        }
        assert_eq!(within(Path::new("/tmp/copy.redb")).to_string(), "copy.redb");
    }
}
