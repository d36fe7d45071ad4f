//! A real nats-server with JetStream, on a free port, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use tempfile::TempDir;

use crate::process::Process;
use crate::wait;

/// Ports are drawn from below the range that systems give to outgoing connections, so that a server
/// that is down for a moment finds its port free again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Most publishes on the way at once.
const IN_FLIGHT: usize = 1_000;

/// How long a request to the server may take before the suite says that it does not answer.
const ANSWER: Duration = Duration::from_secs(20);

/// The versions of nats-server that Foldstream supports are these two and all between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The oldest one: 2.10.26.
    Oldest,
    /// The newest one, on which everything else is tested.
    #[default]
    Newest,
}

impl Version {
    fn program(self) -> PathBuf {
        match self {
            Self::Oldest => crate::tool_of(
                "nats-server",
                "nats-server-oldest",
                "FOLDSTREAM_NATS_SERVER_OLDEST",
            ),
            Self::Newest => crate::tool("nats-server", "FOLDSTREAM_NATS_SERVER"),
        }
    }
}

/// A server. Dropping it kills the process and removes its folder.
#[derive(Debug)]
pub struct NatsServer {
    process: Option<Process>,
    folder: TempDir,
    port: u16,
    extra: String,
    version: Version,
}

/// A port that nobody uses just now.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(PORTS);
        // It may be taken before the server binds it; then the start fails, and says so.
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl NatsServer {
    /// Starts one.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts one with further lines of configuration.
    pub async fn start_with(extra: &str) -> Self {
        Self::start_version_with(Version::Newest, extra).await
    }

    /// Starts one of a version.
    pub async fn start_version(version: Version) -> Self {
        Self::start_version_with(version, "").await
    }

    /// Starts one of a version with further lines of configuration.
    pub async fn start_version_with(version: Version, extra: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut server = Self {
            process: None,
            folder,
            port: free_port(),
            extra: extra.to_owned(),
            version,
        };
        server.restart().await;
        server
    }

    /// Its version. Another one takes effect at the next restart, on the same files, as an upgrade
    /// does.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// Replaces the further lines of configuration, and lets a running server read them again.
    pub fn reload_with(&mut self, extra: &str) {
        extra.clone_into(&mut self.extra);
        self.write_config();
        if let Some(process) = &self.process {
            process.signal(rustix::process::Signal::HUP);
        }
    }

    /// Where its configuration file is, once it was written.
    fn write_config(&self) -> PathBuf {
        let config = self.folder.path().join("nats.conf");
        let text = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}\" }}\n{}\n",
            self.port,
            self.store().display(),
            self.extra
        );
        std::fs::write(&config, text).expect("our folder can be written");
        config
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The folder of its streams.
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Starts it again, on the same port and files, and waits until JetStream answers.
    pub async fn restart(&mut self) {
        self.kill();
        let config = self.write_config();
        let program = self.version.program();
        let mut process = Process::start(
            "nats-server",
            Command::new(program).arg("--config").arg(&config),
        );
        let port = self.port;
        wait::until("nats-server to listen", || {
            assert!(
                process.ended().is_none(),
                "nats-server ended: {}",
                process.output()
            );
            // The log says that JetStream is ready; the connection, that somebody accepts.
            let ready = process.printed("Server is ready").is_some();
            async move {
                (ready
                    && tokio::net::TcpStream::connect(("127.0.0.1", port))
                        .await
                        .is_ok())
                .then_some(())
            }
        })
        .await;
        self.process = Some(process);
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        // Dropping it kills it.
        self.process = None;
    }

    /// Stops it in good order, so that everything is on disk.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(wait::DEADLINE);
        }
    }

    /// Replaces the further lines of its configuration; they count from the next start.
    pub fn configure(&mut self, extra: &str) {
        extra.clone_into(&mut self.extra);
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server runs")
    }

    /// A connection.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::ConnectOptions::new()
            .request_timeout(Some(ANSWER))
            .connect(self.url())
            .await
            .expect("the server that we started accepts connections")
    }

    /// A JetStream context over a connection of its own.
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// Whether it was started and not stopped.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Leaves its folder where it is when it is dropped, for someone to look into; the folder.
    pub fn keep_files(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    /// Copies the folder of its streams. The server must be stopped.
    pub fn back_up(&self) -> TempDir {
        assert!(
            self.process.is_none(),
            "stop the server before its files are copied"
        );
        let copy = tempfile::tempdir().expect("a temporary folder can be made");
        copy_folder(&self.store(), copy.path());
        copy
    }

    /// Puts an older copy in place of its streams, as a restored backup would. The server must be
    /// stopped.
    pub fn restore(&self, copy: &Path) {
        assert!(
            self.process.is_none(),
            "stop the server before its files are replaced"
        );
        std::fs::remove_dir_all(self.store()).expect("our folder can be removed");
        copy_folder(copy, &self.store());
    }

    /// Copies the files of one stream. The server must be stopped.
    pub fn back_up_stream(&self, name: &str) -> TempDir {
        assert!(
            self.process.is_none(),
            "stop the server before its files are copied"
        );
        let copy = tempfile::tempdir().expect("a temporary folder can be made");
        copy_folder(&self.stream_folder(name), copy.path());
        copy
    }

    /// Puts an older copy in place of one stream. The server must be stopped.
    pub fn restore_stream(&self, name: &str, copy: &Path) {
        assert!(
            self.process.is_none(),
            "stop the server before its files are replaced"
        );
        std::fs::remove_dir_all(self.stream_folder(name)).expect("our folder can be removed");
        copy_folder(copy, &self.stream_folder(name));
    }

    fn stream_folder(&self, name: &str) -> PathBuf {
        self.store().join("jetstream/$G/streams").join(name)
    }
}

/// Creates a stream on files, with the settings an event store wants.
pub async fn create_stream(
    context: &jetstream::Context,
    name: &str,
    subjects: &str,
) -> stream::Stream {
    create_stream_with(context, stream_config(name, subjects)).await
}

/// The settings of [`create_stream`].
pub fn stream_config(name: &str, subjects: &str) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        storage: stream::StorageType::File,
        discard: stream::DiscardPolicy::New,
        max_message_size: -1,
        ..stream::Config::default()
    }
}

/// Creates a stream.
pub async fn create_stream_with(
    context: &jetstream::Context,
    config: stream::Config,
) -> stream::Stream {
    context
        .create_stream(config)
        .await
        .expect("a fresh server takes a stream")
}

/// Publishes in order, with many on the way at once; returns the last sequence.
pub async fn publish(
    context: &jetstream::Context,
    messages: impl IntoIterator<Item = (String, Bytes)>,
) -> u64 {
    let mut last = 0;
    let mut acknowledgements = Vec::new();
    for (subject, data) in messages {
        acknowledgements.push(
            context
                .publish(subject, data)
                .await
                .expect("the connection takes it"),
        );
        // All of them before the next, so that the memory for acknowledgements stays bounded.
        if acknowledgements.len() >= IN_FLIGHT {
            last = settle(&mut acknowledgements).await;
        }
    }
    if acknowledgements.is_empty() {
        last
    } else {
        settle(&mut acknowledgements).await
    }
}

async fn settle(acknowledgements: &mut Vec<jetstream::context::PublishAckFuture>) -> u64 {
    let mut last = 0;
    // In order, as they were sent: the last one has the highest sequence.
    for acknowledgement in acknowledgements.drain(..) {
        last = acknowledgement
            .await
            .expect("the stream stores what it is sent")
            .sequence;
    }
    last
}

/// Copies a folder with all that is in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("our folder can be made");
    for entry in std::fs::read_dir(from).expect("our folder can be read") {
        let entry = entry.expect("our folder can be read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("our files have a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("our files can be copied");
        }
    }
}
