//! Contexts of the `nats` command line.
//!
//! A context is a JSON file, `$XDG_CONFIG_HOME/nats/context/NAME.json`; the
//! name of the selected one is in `$XDG_CONFIG_HOME/nats/context.txt`.
//! Source: <https://github.com/nats-io/natscli>, package `natscontext`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Unusable;
use crate::small_file::read_regular_text;

/// Selects the context that `nats context select` chose.
const SELECTED: &str = "selected";

/// The fields of a context that matter to us; empty strings are absent values.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Context {
    pub(super) url: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) token: String,
    pub(super) creds: String,
    pub(super) nkey: String,
    pub(super) user_jwt: String,
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) ca: String,
    pub(super) tls_first: bool,
    pub(super) jetstream_domain: String,
    pub(super) jetstream_api_prefix: String,
    pub(super) inbox_prefix: String,
    nsc: String,
    socks_proxy: String,
}

/// Reads a context by name, or by the path of its file.
pub(super) fn load(name: &str) -> Result<Context, Unusable> {
    // A name has no separator, so this is a path.
    let path = if name.contains(std::path::MAIN_SEPARATOR) {
        home_expanded(name)
    } else {
        find(&nats_folder()?, name)?
    };
    Ok(read(&path)?)
}

/// A path as people write it in a context: `~` is the home folder.
pub(super) fn home_expanded(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

fn nats_folder() -> Result<PathBuf, String> {
    // The XDG specification ignores paths that are not absolute.
    let absolute = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    absolute
        .or_else(|| std::env::home_dir().map(|home| home.join(".config")))
        .map(|config| config.join("nats"))
        .ok_or_else(|| {
            "there is neither XDG_CONFIG_HOME nor a home folder; give the context as a path"
                .to_owned()
        })
}

fn find(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let name = match name {
        SELECTED => selected(folder)?,
        name => name.to_owned(),
    };
    // It becomes a part of a path.
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
        return Err(format!(
            "`{name}` is not the name of a context; use one that `nats context ls` shows"
        ));
    }
    Ok(folder.join("context").join(format!("{name}.json")))
}

fn selected(folder: &Path) -> Result<String, String> {
    let path = folder.join("context.txt");
    let text = read_regular_text(&path).map_err(|error| {
        format!(
            "no context is selected ({}: {error}); run `nats context select`, or give a name",
            path.display()
        )
    })?;
    Ok(text.trim().to_owned())
}

fn read(path: &Path) -> Result<Context, String> {
    let text = read_regular_text(path).map_err(|error| {
        format!(
            "cannot read context {}: {error}; see `nats context ls`",
            path.display()
        )
    })?;
    let context: Context = serde_json::from_str(&text).map_err(|error| {
        format!(
            "context {} is not valid JSON: {error}; run `nats context edit`",
            path.display()
        )
    })?;
    // Refused, because it cannot work: a missing login would fail only at the server.
    if !context.nsc.is_empty() {
        return Err(format!(
            "context {} takes its credentials from nsc; run `nsc generate creds` and set `creds` \
             to the file",
            path.display()
        ));
    }
    if !context.socks_proxy.is_empty() {
        return Err(format!(
            "context {} asks for a SOCKS proxy, which is not supported; remove it",
            path.display()
        ));
    }
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("temporary folder");
        std::fs::create_dir(folder.path().join("context")).expect("folder is writable");
        folder
    }

    fn write(folder: &tempfile::TempDir, name: &str, text: &str) {
        std::fs::write(folder.path().join(name), text).expect("folder is writable");
    }

    #[test]
    fn context_is_found_by_name_and_by_selection() {
        let folder = folder();
        write(
            &folder,
            "context/edge.json",
            r#"{"url":"nats://edge:4222","description":"x","color_scheme":""}"#,
        );
        write(&folder, "context.txt", "edge\n");
        for name in ["edge", SELECTED] {
            let path = find(folder.path(), name).expect("context is there");
            assert_eq!(
                read(&path).expect("context is sound").url,
                "nats://edge:4222"
            );
        }
    }

    #[test]
    fn unusable_contexts_say_what_to_do() {
        let folder = folder();
        write(&folder, "context/broken.json", "{");
        write(
            &folder,
            "context/nsc.json",
            r#"{"nsc":"nsc://operator/account/user"}"#,
        );
        write(
            &folder,
            "context/socks.json",
            r#"{"socks_proxy":"socks5://127.0.0.1:1080"}"#,
        );
        let message = |name: &str| match find(folder.path(), name).and_then(|path| read(&path)) {
            Ok(_) => panic!("context {name} is unusable"),
            Err(message) => message,
        };
        assert!(message("absent").contains("nats context ls"));
        assert!(message("broken").contains("nats context edit"));
        assert!(message("nsc").contains("nsc generate creds"));
        assert!(message("socks").contains("SOCKS"));
        assert!(message(SELECTED).contains("nats context select"));
        assert!(message("../x").contains("not the name of a context"));
    }
}
