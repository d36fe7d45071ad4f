//! What the claims need: guests that are built once, an engine, and a bed on which one instance
//! runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use foldstream::event::{Event, Payload};
use foldstream::module::{ApplyError, Engine, Identity, Instance, Module, Options, QueryError};
use foldstream::position::{Checkpoint, EventMark, StreamIdentity};
use foldstream::state::{self, Store, Writer};
use tempfile::TempDir;

/// Builds the probe with some of its features, once each.
pub(crate) fn guest(features: &str) -> Bytes {
    static BUILT: LazyLock<Mutex<HashMap<String, Bytes>>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().expect("no test panics while it builds");
    if let Some(bytes) = built.get(features) {
        return bytes.clone();
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/probe/Cargo.toml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--target",
            "wasm32-unknown-unknown",
        ])
        .args(["--features", features])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("cargo runs");
    assert!(
        status.success(),
        "the probe builds with features `{features}`"
    );
    let file = target.join("wasm32-unknown-unknown/release/probe.wasm");
    let bytes = Bytes::from(std::fs::read(file).expect("cargo wrote it"));
    built.insert(features.to_owned(), bytes.clone());
    bytes
}

/// A guest of the suite, built as any user builds one.
pub(crate) fn suite_guest(name: &str) -> Bytes {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/guests")
        .join(name);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.wasm"));
    let mut build = Command::new(compiler());
    let output = build
        .arg("build")
        .arg(folder)
        .arg("--out")
        .arg(&file)
        .output()
        .expect("foldstream runs");
    assert!(
        output.status.success(),
        "{name} does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Bytes::from(std::fs::read(file).expect("it was just written"))
}

pub(crate) fn compiler() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_foldstream"))
}

pub(crate) fn options(cache: &Path) -> Options {
    // Each engine reserves address space for all its instances, and the tests run side by side.
    Options {
        instances_max: 64,
        ..Options::new(cache.to_owned(), compiler())
    }
}

pub(crate) fn engine(change: impl FnOnce(&mut Options)) -> (Engine, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = options(folder.path());
    change(&mut options);
    (Engine::new(options).expect("the engine starts"), folder)
}

/// The engine of all tests that need no other.
pub(crate) fn shared() -> &'static Engine {
    static ENGINE: LazyLock<(Engine, TempDir)> = LazyLock::new(|| engine(|_| {}));
    &ENGINE.0
}

pub(crate) fn load(engine: &Engine, features: &str) -> Arc<Module> {
    load_upload(engine, guest(features))
}

pub(crate) fn load_upload(engine: &Engine, upload: Bytes) -> Arc<Module> {
    let accepted = engine.accept(upload).expect("the guest is accepted");
    engine.load(&accepted).expect("the guest loads").module
}

pub(crate) fn identity() -> Identity {
    Identity {
        deployment: "probe".to_owned(),
        generation: 1,
    }
}

pub(crate) fn event(sequence: u64, kind: &str, data: &str) -> Event {
    Event {
        sequence,
        time_ns: 1_700_000_000_000_000_000 + sequence,
        subject: "probe.subject".into(),
        kind: kind.into(),
        headers: vec![("ce-id".into(), "42".into()), ("x".into(), "ü".into())],
        data: data.into(),
    }
}

/// A module that runs over a state of its own.
pub(crate) struct Bed {
    pub module: Arc<Module>,
    pub instance: Instance,
    pub store: Store,
    pub writer: Option<Writer>,
    pub _folder: TempDir,
}

impl Bed {
    pub(crate) fn new(module: Arc<Module>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, writer) = Store::open(
            &folder.path().join("state.redb"),
            state::Options::default(),
            |_| {},
        )
        .expect("state opens");
        let instance = module.instantiate(&identity()).expect("an instance");
        Self {
            module,
            instance,
            store,
            writer: Some(writer),
            _folder: folder,
        }
    }

    pub(crate) fn probe() -> Self {
        Self::new(load(shared(), ""))
    }

    /// Applies a batch and publishes it, or drops it.
    pub(crate) fn apply(&mut self, events: &[Event]) -> Result<(), ApplyError> {
        let mut writer = self
            .writer
            .take()
            .expect("the writer is here between calls");
        writer.begin();
        let (mut writer, result) = self.instance.apply(events, writer);
        match &result {
            Ok(()) => {
                let last = events.last().expect("a batch has events");
                let stream = StreamIdentity {
                    name: "s".to_owned(),
                    created_ns: 1,
                };
                let position = last.sequence.max(self.store.position());
                writer.publish(Checkpoint {
                    last_event: Some(EventMark::of(last)),
                    ..Checkpoint::at(position, stream)
                });
            }
            Err(_) => writer.discard(),
        }
        self.writer = Some(writer);
        result
    }

    pub(crate) fn renew(&mut self) {
        self.instance = self.module.instantiate(&identity()).expect("an instance");
    }

    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let value = self.store.snapshot().get(key).expect("state answers");
        value.map(|value| value.as_str().expect("text").to_owned())
    }

    pub(crate) fn query(&self, name: &str, args: &str) -> Result<Payload, QueryError> {
        self.module
            .query(&identity(), self.store.snapshot(), name, &args.into())
    }

    /// The name of the limit that a batch reaches. A new instance then continues as if nothing had
    /// happened.
    pub(crate) fn limit(&mut self, events: &[Event]) -> &'static str {
        let error = self.apply(events).expect_err("a limit is reached");
        let ApplyError::Limit { limit, message } = error else {
            panic!("another error: {error:?}")
        };
        assert!(!message.is_empty());
        self.works_again();
        limit
    }

    pub(crate) fn works_again(&mut self) {
        self.renew();
        let before = self
            .value("count")
            .map_or(0, |value| value.parse::<u64>().expect("a number"));
        self.apply(&[event(before + 1_000, "count", "")])
            .expect("a new instance works");
        assert_eq!(self.value("count"), Some((before + 1).to_string()));
    }
}

/// Runs `body` and returns what it logged.
pub(crate) fn logged(body: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0
                .lock()
                .expect("not poisoned")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, body);
    let bytes = lines.0.lock().expect("not poisoned").clone();
    String::from_utf8(bytes).expect("log lines are text")
}
