//! A real nats-server of its own for each test, and the verbs to drive it.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;

/// How long anything in a test may take on a loaded machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Waits for something, but not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(result) => result,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Asks again and again until the answer is there.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    within(what, async {
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        loop {
            pace.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    })
    .await
}

/// The versions of nats-server that Foldstream supports are these two and all between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// The oldest one.
    Oldest,
    /// The newest one.
    Newest,
}

impl Version {
    fn program(self) -> PathBuf {
        match self {
            Self::Oldest => program("nats-server-oldest", "FOLDSTREAM_NATS_SERVER_OLDEST"),
            Self::Newest => program("nats-server", "FOLDSTREAM_NATS_SERVER"),
        }
    }
}

/// Makes two tests of each claim, one for each of these versions.
macro_rules! on_both_versions {
    ($($claim:ident)*) => {
        mod oldest {
            $(#[tokio::test] async fn $claim() { super::$claim(crate::server::Version::Oldest).await; })*
        }
        mod newest {
            $(#[tokio::test] async fn $claim() { super::$claim(crate::server::Version::Newest).await; })*
        }
    };
}
pub(crate) use on_both_versions;

/// A server; killed when dropped.
pub(crate) struct Server {
    version: Version,
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// A server without accounts.
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// A server of a version.
    pub(crate) async fn start_of(version: Version) -> Self {
        let mut server = Self::prepare_of(version, "");
        server.run().await;
        server
    }

    /// A server with more configuration; `$FOLDER` is replaced by its folder.
    pub(crate) async fn start_with(configuration: &str) -> Self {
        let mut server = Self::prepare(configuration);
        server.run().await;
        server
    }

    /// A server that is not started yet.
    pub(crate) fn prepare(configuration: &str) -> Self {
        Self::prepare_of(Version::Newest, configuration)
    }

    /// The same of a version.
    pub(crate) fn prepare_of(version: Version, configuration: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let server = Self {
            version,
            folder,
            port: free_port(),
            child: None,
        };
        server.configure(configuration);
        server
    }

    /// Replaces the configuration beyond what every server has.
    pub(crate) fn configure(&self, configuration: &str) {
        let folder = self.folder.path().display();
        let jetstream = if configuration.contains("jetstream") {
            String::new()
        } else {
            format!("jetstream {{ store_dir: \"{folder}/store\" }}")
        };
        let text = format!(
            "listen: 127.0.0.1:{}\nmax_payload: 8MB\nmax_pending: 64MB\n{jetstream}\n{}\n",
            self.port,
            configuration.replace("$FOLDER", &folder.to_string()),
        );
        std::fs::write(self.folder.path().join("server.conf"), text).expect("folder is writable");
    }

    /// Starts it and waits until it takes connections.
    pub(crate) async fn run(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("server.log"))
            .expect("folder is writable");
        let child = Command::new(self.version.program())
            .arg("-c")
            .arg(self.folder.path().join("server.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server starts; install it or set FOLDSTREAM_NATS_SERVER");
        self.child = Some(child);
        let address = ("127.0.0.1", self.port);
        let connected = async || tokio::net::TcpStream::connect(address).await.ok();
        until("the server takes connections", connected).await;
        let ended = self
            .child
            .as_mut()
            .and_then(|child| child.try_wait().expect("the server can be asked"));
        assert!(ended.is_none(), "nats-server ended: {}", self.log());
    }

    /// What it wrote about itself.
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Kills it at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server ends");
        }
    }

    /// Lets it read its configuration again.
    pub(crate) fn reload(&self) {
        let child = self.child.as_ref().expect("the server runs");
        let done = Command::new("kill")
            .arg("-HUP")
            .arg(child.id().to_string())
            .status()
            .expect("kill is there");
        assert!(done.success(), "the server takes signals");
    }

    /// The folder that its configuration lies in.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into its folder.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let mut file = std::fs::File::create(&path).expect("folder is writable");
        file.write_all(text.as_bytes()).expect("folder is writable");
        path
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The JetStream of its default account.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        self.jetstream_as(async_nats::ConnectOptions::new()).await
    }

    /// JetStream as somebody sees it.
    pub(crate) async fn jetstream_as(
        &self,
        options: async_nats::ConnectOptions,
    ) -> jetstream::Context {
        let client = within("a client connects", options.connect(self.url()))
            .await
            .expect("the server is there");
        jetstream::new(client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that no other server of this process gets, also while ours is down
/// between two runs: below those that the system gives out by itself.
pub(crate) fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (std::process::id() * 199 + count) % 12_000;
        let port = u16::try_from(port).expect("it is below 32,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn program(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let local = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../.cache/bin")
        .join(name);
    let is_on_path = std::env::var_os("PATH").is_some_and(|paths| {
        std::env::split_paths(&paths).any(|folder| folder.join(name).is_file())
    });
    if !is_on_path && local.is_file() {
        local
    } else {
        name.into()
    }
}

/// The settings of the stream that most tests use.
pub(crate) fn orders() -> Config {
    Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        ..Config::default()
    }
}

/// Publishes events and waits until the stream has them all.
pub(crate) async fn publish(
    jetstream: &jetstream::Context,
    events: impl IntoIterator<Item = (String, String)>,
) {
    let mut acknowledgements = Vec::new();
    for (subject, data) in events {
        let sent = jetstream
            .publish(subject, data.into())
            .await
            .expect("events can be published");
        acknowledgements.push(sent);
        if acknowledgements.len() == 1_000 {
            confirm(&mut acknowledgements).await;
        }
    }
    confirm(&mut acknowledgements).await;
}

async fn confirm(acknowledgements: &mut Vec<jetstream::context::PublishAckFuture>) {
    for acknowledgement in acknowledgements.drain(..) {
        within("an event is stored", async { acknowledgement.await })
            .await
            .expect("the stream takes events");
    }
}

/// Events `from..to` under `orders.<n mod 10>.placed`, with their number as data.
pub(crate) fn numbered(numbers: std::ops::Range<u64>) -> impl Iterator<Item = (String, String)> {
    numbers.map(|number| {
        (
            format!("orders.{}.placed", number % 10),
            format!("{{\"number\":{number}}}"),
        )
    })
}
