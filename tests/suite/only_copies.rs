//! Parked events that the stream has lost: their only copy is in the state, and goes only if that
//! is meant.

use foldstream::api::{self, GenerationStatus};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::guests;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};

use crate::parking::{ILL, NAME};

const STREAM: &str = "MISCHIEF";
/// Harmless events before those of `ILL`, so that a build takes a while.
const BEFORE: u64 = 290;

/// A host that counts missing events, and a state in which events of the stream are parked.
struct Bed {
    host: Host,
    server: NatsServer,
    last: u64,
}

impl Bed {
    async fn start() -> Self {
        let server = NatsServer::start().await;
        let context = server.jetstream().await;
        nats::create_stream(&context, STREAM, "mischief.>").await;
        let source = jetstream_source(&server.url(), STREAM);
        let host = Host::start_with(&format!("{source}missing = \"count\"\n")).await;
        host.client()
            .deploy_with(NAME, &guests::module(NAME), "&on-failure=park")
            .await;
        let told = |(key, text): (&str, &str)| {
            let data = text.as_bytes().to_vec();
            (format!("mischief.{key}"), data.into())
        };
        let before = (0..BEFORE).map(|_| told(("eve", "note 0")));
        let last = nats::publish(&context, before.chain(ILL.map(told))).await;
        host.client().reached(NAME, last).await;
        let bed = Self { host, server, last };
        assert_eq!(bed.parked().await, 2);
        bed
    }

    /// Removes the parked events, `ill 2` and `note 4` of `ada`, from the stream.
    async fn remove_parked(&self) {
        let stream = self.server.jetstream().await.get_stream(STREAM).await;
        let stream = stream.expect("the stream is there");
        for sequence in [BEFORE + 2, BEFORE + 4] {
            let removed = stream.delete_message(sequence).await;
            assert!(removed.expect("is deleted"));
        }
    }

    async fn parked(&self) -> u64 {
        let path = format!("/v1/deployments/{NAME}/parked");
        let answer = self.host.client().get(&path).await.expect(200);
        answer.json::<api::ParkedList>().counts.events
    }

    fn run(&self, line: &str) -> Output {
        cli::on(&self.host, &line.split(' ').collect::<Vec<_>>())
    }
}

#[tokio::test]
async fn a_state_with_the_only_copy_of_parked_events_is_replaced_only_if_that_is_meant() {
    let bed = Bed::start().await;
    bed.remove_parked().await;
    let says = "2 events that are parked are gone from stream MISCHIEF";
    let refused = bed.run("rebuild mischief --wait");
    assert!(
        refused.code != 0 && refused.stderr.contains(says),
        "{refused:?}"
    );
    let module = guests::path("mischief-fixed").display().to_string();
    let rebuilt = ["deploy", &module, "--name", NAME, "--strategy", "rebuild"];
    let refused = cli::on(&bed.host, &rebuilt);
    assert!(
        refused.code != 0 && refused.stderr.contains(says),
        "{refused:?}"
    );
    assert_eq!(bed.parked().await, 2);

    let done = bed
        .run("rebuild mischief --accept-missing --wait")
        .expect(0);
    assert!((done.stdout + &done.stderr).contains(says));
    assert_eq!(bed.parked().await, 0);
    let active = bed.run("generations mischief -o json").expect(0).stdout;
    assert!(
        active.contains("the state before had 2 parked events"),
        "{active}"
    );
    bed.run("rollback mischief").expect(0);
    assert_eq!(bed.parked().await, 2);

    // The state has what it takes to apply them, and nothing is lost by a rebuild then.
    let inherit = ["deploy", &module, "--name", NAME, "--strategy", "inherit"];
    cli::on(&bed.host, &inherit).expect(0);
    let last = nats::publish(
        &bed.server.jetstream().await,
        [("mischief.bob".to_owned(), "note 5".into())],
    )
    .await;
    bed.host.client().reached(NAME, last).await;
    bed.run("parked retry mischief --all").expect(0);
    let rebuilt = bed.run("rebuild mischief --wait").expect(0);
    assert!(!rebuilt.stderr.contains("are parked"), "{rebuilt:?}");
}

#[tokio::test]
async fn parked_events_that_the_stream_loses_during_a_build_keep_the_candidate_from_taking_over() {
    let bed = Bed::start().await;
    let client = bed.host.client();
    client.act(NAME, "rebuild?max-rate=20").await.expect(200);
    client.becomes(NAME, 2, GenerationStatus::Building).await;
    client.act(NAME, "pause?candidate=true").await.expect(200);
    bed.remove_parked().await;
    client.act(NAME, "resume?candidate=true").await.expect(200);
    bed.run("throttle mischief --off").expect(0);
    let is_held = |shown: &api::Deployment| {
        let candidate = shown.candidate.as_ref();
        candidate.is_some_and(|candidate| candidate.lacks_events == 2)
    };
    let shown = client.show_when(NAME, "hold the candidate back", is_held);
    let reason = shown.await.candidate.expect("it is there").reason;
    assert!(
        reason.contains("2 events that are parked are gone from stream MISCHIEF")
            && reason.contains("resume mischief --candidate --accept-missing"),
        "{reason}"
    );
    assert_eq!(bed.parked().await, 2);
    bed.run("resume mischief --candidate --accept-missing")
        .expect(0);
    client.becomes(NAME, 2, GenerationStatus::Active).await;
    assert_eq!(client.reached(NAME, bed.last).await.missing_events, 2);
}
