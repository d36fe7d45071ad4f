//! What all tasks of a round share: the server, the host, the oracle, the log of what was done, and
//! the counts.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use foldstream_tests::client::{Answer, Client};
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer, Version};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::wait;
use reqwest::{Method, RequestBuilder};
use tokio::sync::{MutexGuard, watch};

use crate::oracle::Oracle;
use crate::{errands, handlers, leaky, removal, side};

/// The stream of orders.
pub const STREAM: &str = "ORDERS";
/// The deployment that everything is done to.
pub const LEDGER: &str = "ledger";
/// A neighbour on the same stream, whose keys can be rebuilt one by one.
pub const TALLY: &str = "tally";

/// Pause before a host that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(10);
/// How long a host that is up may take to answer, on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(45);

/// Permissions of the host's user that refuse nothing.
pub const ALL: &str = "publish: \">\", subscribe: \">\"";

/// The users of the server: one for the test, and one for the host with these permissions.
pub fn authorization(permissions: &str) -> String {
    let host = format!("{{ user: fold, password: fold, permissions: {{ {permissions} }} }}");
    format!("authorization {{ users: [ {{ user: admin, password: admin }}, {host} ] }}")
}

/// How the test itself connects.
pub fn admin() -> async_nats::ConnectOptions {
    async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "admin".to_owned())
}

/// What a round counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Kills of the host.
    pub kills: AtomicU64,
    /// Of these, at a named step of a rollout.
    pub kills_at_steps: AtomicU64,
    /// Stops and kills of the server.
    pub server_stops: AtomicU64,
    /// Answers of reads that were checked.
    pub answers: AtomicU64,
    /// Reads that were declined, because the position was still behind.
    pub declined: AtomicU64,
    /// Changes of watches that were checked.
    pub changes: AtomicU64,
    /// Deploys, rollbacks and other changes that were answered.
    pub changed: AtomicU64,
    /// Faults of other kinds.
    pub faults: AtomicU64,
    /// Messages of handlers that were counted.
    pub effects: AtomicU64,
    /// Timers that fired, events that were left out because they came twice, events that were
    /// released, and purchases that ended.
    pub firings: AtomicU64,
    pub duplicates: AtomicU64,
    pub released: AtomicU64,
    pub purchases: AtomicU64,
    /// Turns of the stream that removes events, after each of which every event was accounted for.
    pub leaks: AtomicU64,
}

impl Counts {
    /// Adds one.
    pub fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// All of them in words.
    pub fn words(&self) -> String {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{} kills ({} at steps), {} stops of the server, {} other faults, {} changes of \
             deployments, {} answers, {} changes, {} effects, {} firings, {} duplicates, {} released events, {} purchases and {} \
             leaks checked, {} reads declined",
            count(&self.kills),
            count(&self.kills_at_steps),
            count(&self.server_stops),
            count(&self.faults),
            count(&self.changed),
            count(&self.answers),
            count(&self.changes),
            count(&self.effects),
            count(&self.firings),
            count(&self.duplicates),
            count(&self.released),
            count(&self.purchases),
            count(&self.leaks),
            count(&self.declined),
        )
    }

    /// Adds those of another round.
    pub fn add_all(&self, other: &Self) {
        let pairs = [
            (&self.kills, &other.kills),
            (&self.kills_at_steps, &other.kills_at_steps),
            (&self.server_stops, &other.server_stops),
            (&self.answers, &other.answers),
            (&self.declined, &other.declined),
            (&self.changes, &other.changes),
            (&self.changed, &other.changed),
            (&self.faults, &other.faults),
            (&self.effects, &other.effects),
            (&self.firings, &other.firings),
            (&self.duplicates, &other.duplicates),
            (&self.released, &other.released),
            (&self.purchases, &other.purchases),
            (&self.leaks, &other.leaks),
        ];
        for (total, part) in pairs {
            total.fetch_add(part.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// One round.
#[derive(Debug)]
pub struct World {
    /// Its seed.
    pub seed: u64,
    /// The server.
    pub server: tokio::sync::Mutex<NatsServer>,
    /// Between the server and the handlers of the host.
    pub proxy: Proxy,
    /// The host. Who holds it may kill it.
    pub host: tokio::sync::Mutex<Host>,
    /// What every answer has to be.
    pub oracle: Oracle,
    /// Read while an episode of a side stream is played, so that a round does not end in the middle
    /// of one.
    pub playing: tokio::sync::RwLock<()>,
    /// What the stream that removes events was sent, held while that or the deployments change.
    pub leaky: tokio::sync::Mutex<leaky::Books>,
    /// Held while publishing, so that sequences follow each other in the oracle.
    pub publishing: tokio::sync::Mutex<()>,
    /// What was counted.
    pub counts: Counts,
    client: RwLock<Client>,
    url: String,
    log: Mutex<String>,
    begun: Instant,
    /// How far the round is.
    phase: watch::Sender<Phase>,
}

/// How far a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Things break and change.
    Chaos,
    /// Nothing breaks or changes any more; orders are still published and read.
    Calm,
    /// Nothing is published any more.
    Rest,
    /// All tasks end.
    Over,
}

impl World {
    /// Starts a server with its streams, and a host that reads them.
    pub async fn start(seed: u64, version: Version, subjects: &[&str], config: &str) -> Self {
        let server = NatsServer::start_version_with(version, &authorization(ALL)).await;
        let url = server.url();
        let client = admin()
            .connect(&url)
            .await
            .expect("the server that we started takes a connection");
        let context = async_nats::jetstream::new(client);
        let mut stream = nats::stream_config(STREAM, "orders.>");
        stream.subjects = subjects
            .iter()
            .map(|subject| (*subject).to_owned())
            .collect();
        nats::create_stream_with(&context, stream).await;
        nats::create_stream(&context, side::STREAM, "mischief.>").await;
        handlers::create_streams(&context, seed).await;
        errands::create_streams(&context, seed).await;
        let proxy = Proxy::start(&url).await;
        let source = |name: &str, url: &str, stream: &str| {
            let source =
                jetstream_source(url, stream).replace("sources.orders", &format!("sources.{name}"));
            format!("{source}user = \"fold\"\npassword = \"fold\"\n")
        };
        let sources = [
            source("orders", &url, STREAM),
            source(side::SOURCE, &url, side::STREAM),
            source(leaky::STOPPING, &url, removal::STREAM),
            source(leaky::COUNTING, &url, removal::STREAM) + "missing = \"count\"\n",
            source(handlers::INPUT, &proxy.url(), handlers::INPUT),
            source(handlers::OUTPUT, &proxy.url(), handlers::OUTPUT),
            format!("[sources.{}]\nkind = \"embedded\"\n", handlers::LOG),
            source(errands::INPUT, &proxy.url(), errands::INPUT),
            source(errands::OUTPUT, &proxy.url(), errands::OUTPUT),
            format!(
                "[sources.{}]\nkind = \"embedded\"\nduplicate_window = \"0s\"\n",
                errands::LOG
            ),
        ]
        .concat();
        let host = Host::start_with(&format!("{config}\n{sources}")).await;
        Self {
            seed,
            client: RwLock::new(host.client().clone()),
            url,
            server: tokio::sync::Mutex::new(server),
            proxy,
            host: tokio::sync::Mutex::new(host),
            oracle: Oracle::new(),
            playing: tokio::sync::RwLock::default(),
            leaky: tokio::sync::Mutex::default(),
            publishing: tokio::sync::Mutex::new(()),
            counts: Counts::default(),
            log: Mutex::default(),
            begun: Instant::now(),
            phase: watch::Sender::new(Phase::Chaos),
        }
    }

    /// Notes what is done, for the log that a failing round prints.
    pub fn note(&self, what: &str) {
        let mut log = self.log.lock().expect("no holder panics");
        let _ = writeln!(log, "{:9.3} {what}", self.begun.elapsed().as_secs_f64());
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no holder panics").clone()
    }

    /// Sets how far the round is.
    pub fn set_phase(&self, phase: Phase) {
        self.note(&format!("-- {phase:?}"));
        self.phase.send_replace(phase);
    }

    /// Whether the round is at a phase or before it.
    pub fn is_until(&self, phase: Phase) -> bool {
        *self.phase.borrow() <= phase
    }

    /// Waits, but not beyond the end of a phase.
    pub async fn sleep_until_after(&self, phase: Phase, time: Duration) {
        let mut phases = self.phase.subscribe();
        let _ = tokio::time::timeout(time, phases.wait_for(|now| *now > phase)).await;
    }

    /// Where the server listens.
    pub fn nats_url(&self) -> &str {
        &self.url
    }

    /// The client of the host that was started last.
    pub fn client(&self) -> Client {
        self.client.read().expect("no holder panics").clone()
    }

    /// The same host has another address after each start.
    pub fn set_client(&self, client: &Client) {
        *self.client.write().expect("no holder panics") = client.clone();
    }

    /// Asks once; none if the host is down or goes down before it has answered.
    pub async fn ask_once(&self, build: impl Fn(&Client) -> RequestBuilder) -> Option<Answer> {
        let client = self.client();
        let answer = match client.try_send(build(&client).timeout(ANSWER_MAX)).await {
            Ok(answer) => answer,
            // The port of a host that is gone may have another owner.
            Err(error) => {
                let is_up = client.url() == self.client().url();
                assert!(
                    !is_up || !error.is_timeout(),
                    "no answer within {ANSWER_MAX:?}: {error}"
                );
                return None;
            }
        };
        let status = answer.status.as_u16();
        // The limit that imitates a full disk takes the memory of an instance for a file, which a
        // real disk does not.
        if status == 500
            && answer
                .text()
                .contains("cannot create an instance: File too large")
        {
            return None;
        }
        // A host never fails inside, whatever happens around it: it declines.
        assert!(status != 500, "the host failed inside: {}", answer.text());
        Some(answer)
    }

    /// Asks until some host answers something else than that it is not ready.
    pub async fn ask(&self, method: Method, path: &str) -> Answer {
        let begin = Instant::now();
        let mut last = "no answer".to_owned();
        loop {
            if let Some(answer) = self
                .ask_once(|client| client.request(method.clone(), path))
                .await
            {
                if !matches!(answer.status.as_u16(), 502..=504) {
                    return answer;
                }
                last = answer.text();
            }
            assert!(
                begin.elapsed() < wait::DEADLINE,
                "{method} {path} is not answered: {last}"
            );
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// How a deployment is.
    pub async fn show(&self, name: &str) -> foldstream::api::Deployment {
        self.ask(Method::GET, &format!("/v1/deployments/{name}"))
            .await
            .expect(200)
            .json()
    }

    /// The skipped events of a deployment.
    pub async fn skips(&self, name: &str) -> Vec<u64> {
        let list: serde_json::Value = self
            .ask(Method::GET, &format!("/v1/deployments/{name}/skips"))
            .await
            .expect(200)
            .json();
        let skips = list["skips"].as_array().into_iter().flatten();
        skips.filter_map(|skip| skip["sequence"].as_u64()).collect()
    }

    /// Waits until a deployment satisfies a condition.
    pub async fn show_when(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&foldstream::api::Deployment) -> bool,
    ) -> foldstream::api::Deployment {
        let begin = Instant::now();
        loop {
            let shown = self.show(name).await;
            if condition(&shown) {
                return shown;
            }
            assert!(
                begin.elapsed() < wait::DEADLINE,
                "waited in vain for {name} to {what}: {shown:#?}"
            );
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Kills the host and starts it again. The next one kills itself at `step`, if one is named.
    pub async fn kill_host(&self, step: Option<&str>) {
        let mut host = self.host.lock().await;
        host.kill();
        Counts::add(&self.counts.kills);
        self.start_host(&mut host, step).await;
    }

    /// Lets nobody kill or stop anything for as long as the result is held.
    pub async fn hold_still(&self) -> (MutexGuard<'_, NatsServer>, MutexGuard<'_, Host>) {
        let (server, mut host) = (self.server.lock().await, self.host.lock().await);
        // It may be about to kill itself at a step.
        host.kill();
        Counts::add(&self.counts.kills);
        self.start_host(&mut host, None).await;
        (server, host)
    }

    /// Starts a host that is down. One that dies at a step before it listens is started again
    /// without it.
    pub async fn start_host(&self, host: &mut Host, step: Option<&str>) {
        host.die_at(step);
        if !host.try_restart().await {
            assert!(step.is_some(), "the host ended: {}", host.output());
            self.note("the host died at its step before it listened");
            Counts::add(&self.counts.kills);
            Counts::add(&self.counts.kills_at_steps);
            host.die_at(None);
            host.restart().await;
        }
        self.set_client(host.client());
        self.note(&format!("host up at {}", host.url()));
    }

    /// Leaves all files where they are; says where.
    pub async fn keep(&self) -> String {
        // Who panicked may have held them; nobody holds them for ever.
        let (mut host, mut server) = (self.host.lock().await, self.server.lock().await);
        let folder = host.keep_files().to_owned();
        let printed = host.output();
        let _ = std::fs::write(folder.join("host.log"), printed);
        let _ = std::fs::write(folder.join("actions.log"), self.log());
        format!(
            "host: {}\nserver: {}",
            folder.display(),
            server.keep_files().display()
        )
    }
}
