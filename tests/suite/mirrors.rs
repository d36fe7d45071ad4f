//! Mirrors that leave out sequences by design: their gaps say nothing, so what they have lost is
//! found by counting.

use async_nats::jetstream::{self, stream};
use foldstream::api::{self, GenerationStatus, WorkState};
use foldstream_tests::client::Client;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::orders::Orders;
use foldstream_tests::stage::LEDGER;
use foldstream_tests::{cli, guests, wait};

const ORIGIN: &str = "ORIGIN";
const MIRROR: &str = "MIRROR";
const TALLY: &str = "tally";

/// A host that reads a mirror of a part of a stream.
struct Bed {
    server: NatsServer,
    context: jetstream::Context,
    host: Host,
    orders: Orders,
}

impl Bed {
    /// With the settings of the mirror.
    async fn start(config: stream::Config) -> Self {
        Self::start_with(config, "").await
    }

    /// With those of the host as well.
    async fn start_with(config: stream::Config, settings: &str) -> Self {
        let server = NatsServer::start().await;
        let context = server.jetstream().await;
        let origin = stream::Config {
            subjects: vec!["orders.>".to_owned(), "others.>".to_owned()],
            ..nats::stream_config(ORIGIN, "")
        };
        nats::create_stream_with(&context, origin).await;
        nats::create_stream_with(&context, config).await;
        let source = jetstream_source(&server.url(), MIRROR);
        let host = Host::start_with(&format!("{source}{settings}")).await;
        let orders = Orders::new(7, 10);
        Self {
            server,
            context,
            host,
            orders,
        }
    }

    fn client(&self) -> &Client {
        self.host.client()
    }

    /// Publishes orders, each behind an event that the mirror leaves out; waits until the mirror has
    /// them. Returns the last sequence.
    async fn publish(&mut self, count: usize) -> u64 {
        let orders: Vec<_> = self.orders.by_ref().take(count).collect();
        let messages = orders
            .iter()
            .flat_map(|order| [("others.a".to_owned(), "{}".into()), order.message()]);
        let last = nats::publish(&self.context, messages.collect::<Vec<_>>()).await;
        wait::until("the mirror to have it", || async {
            let mirror = self.context.get_stream(MIRROR).await.expect("it is there");
            (mirror.cached_info().state.last_sequence >= last).then_some(())
        })
        .await;
        last
    }

    async fn mirror(&self) -> stream::Stream {
        let mirror = self.context.get_stream(MIRROR).await;
        mirror.expect("the mirror is there")
    }

    async fn delete(&self, sequence: u64) {
        let deleted = self.mirror().await.delete_message(sequence).await;
        assert!(deleted.expect("the server answers"));
    }

    async fn deploy(&self, name: &str, last: u64) {
        self.client().deploy(name, &guests::module(name)).await;
        self.client().reached(name, last).await;
    }
}

/// A mirror of the orders.
fn of_orders() -> stream::Config {
    stream::Config {
        mirror: Some(stream::Source {
            name: ORIGIN.to_owned(),
            filter_subject: Some("orders.>".to_owned()),
            ..stream::Source::default()
        }),
        subjects: Vec::new(),
        ..nats::stream_config(MIRROR, "")
    }
}

/// Why something is refused.
async fn refused(client: &Client, name: &str, action: &str) -> String {
    client
        .act(name, action)
        .await
        .problem(422, "refused")
        .detail
}

async fn verified(client: &Client, name: &str, parameters: &str) -> api::Verification {
    client
        .act(name, &format!("verification{parameters}"))
        .await
        .expect(200);
    wait::until("the verification to end", || async {
        let path = format!("/v1/deployments/{name}/verification");
        let found: api::Verification = client.get(&path).await.expect(200).json();
        matches!(found.state, WorkState::Done | WorkState::Failed).then_some(found)
    })
    .await
}

#[tokio::test]
async fn what_a_mirror_of_some_subjects_has_lost_is_reported_and_counted() {
    let transformed = stream::Config {
        mirror: Some(stream::Source {
            name: ORIGIN.to_owned(),
            subject_transforms: vec![stream::SubjectTransform {
                source: "orders.>".to_owned(),
                destination: "orders.>".to_owned(),
            }],
            ..stream::Source::default()
        }),
        ..of_orders()
    };
    for config in [of_orders(), transformed] {
        let mut bed = Bed::start(config).await;
        let last = bed.publish(30).await;
        bed.deploy(LEDGER, last).await;
        // Nothing is lost yet.
        assert_eq!(verified(bed.client(), LEDGER, "").await.equal, Some(true));
        let before = bed.client().entries(LEDGER, "").await;
        bed.delete(4).await;
        let lacks = "1 event that was applied is gone from stream MIRROR";
        for action in ["rebuild", "verification"] {
            let why = refused(bed.client(), LEDGER, action).await;
            assert!(
                why.contains(lacks) && why.contains("--accept-missing"),
                "{why}"
            );
        }
        let path = format!("/v1/deployments/{LEDGER}/entries?as-of=20");
        let why = bed.client().get(&path).await.problem(422, "refused").detail;
        assert!(why.contains(lacks), "{why}");
        assert_eq!(bed.client().entries(LEDGER, "").await, before);

        let verification = verified(bed.client(), LEDGER, "?accept-missing=true").await;
        assert_eq!(verification.equal, Some(false));
        assert!(verification.message.contains("keep it"), "{verification:?}");
        bed.client()
            .act(LEDGER, "rebuild?accept-missing=true")
            .await
            .expect(200);
        bed.client()
            .becomes(LEDGER, 2, GenerationStatus::Active)
            .await;
        assert_eq!(bed.client().show(LEDGER).await.missing_events, 1);
        assert_ne!(bed.client().entries(LEDGER, "").await, before);
        // What the new state never had is not asked for again; what is lost since is.
        assert_eq!(verified(bed.client(), LEDGER, "").await.equal, Some(true));
        bed.delete(8).await;
        let why = refused(bed.client(), LEDGER, "rebuild").await;
        assert!(why.contains(lacks), "{why}");
    }
}

#[tokio::test]
async fn what_a_limit_of_a_mirror_has_removed_is_reported() {
    let mut bed = Bed::start(stream::Config {
        max_messages: 10,
        discard: stream::DiscardPolicy::Old,
        ..of_orders()
    })
    .await;
    let last = bed.publish(10).await;
    bed.deploy(LEDGER, last).await;
    let last = bed.publish(5).await;
    bed.client().reached(LEDGER, last).await;
    let why = refused(bed.client(), LEDGER, "rebuild").await;
    assert!(
        why.contains("5 events that were applied are gone from stream MIRROR"),
        "{why}"
    );
    let query = format!("?name={LEDGER}&strategy=rebuild");
    let next = guests::release("ledger", 2);
    let why = bed
        .client()
        .upload(next, &query)
        .await
        .problem(422, "refused")
        .detail;
    assert!(why.contains("5 events that were applied are gone"), "{why}");
}

#[tokio::test]
async fn what_a_mirror_loses_while_a_candidate_is_built_does_not_go_unnoticed() {
    let mut bed = Bed::start(of_orders()).await;
    let last = bed.publish(60).await;
    bed.deploy(LEDGER, last).await;
    let before = bed.client().entries(LEDGER, "").await;
    for (number, rest) in [(2, ""), (3, "&accept-missing=true")] {
        let sequence = 120 - 2 * number;
        bed.client()
            .act(LEDGER, &format!("rebuild?max-rate=10{rest}"))
            .await
            .expect(200);
        bed.client()
            .becomes(LEDGER, number, GenerationStatus::Building)
            .await;
        // It paused before it got there, and reads on after the loss.
        bed.client()
            .act(LEDGER, "pause?candidate=true")
            .await
            .expect(200);
        bed.delete(sequence).await;
        cli::on(&bed.host, &["throttle", LEDGER, "--off"]).expect(0);
        bed.client()
            .act(LEDGER, "resume?candidate=true")
            .await
            .expect(200);
        if rest.is_empty() {
            let lacks = "1 event that was applied is gone from stream MIRROR";
            let held_back = wait::until("the candidate to be held back", || async {
                let known = bed.client().generations(LEDGER).await;
                known.into_iter().find(|known| known.lacks_events > 0)
            })
            .await;
            assert!(
                held_back.status == GenerationStatus::Ready
                    && held_back.reason.contains(lacks)
                    && held_back.reason.contains("--accept-missing"),
                "{held_back:?}"
            );
            assert_eq!(bed.client().entries(LEDGER, "").await, before);
            // Its fold is not lost, not even to a restart.
            bed.host.restart().await;
            bed.client().reached(LEDGER, last).await;
            // Until it is loaded again, it is refused for that.
            wait::until("promotion to be refused for what it lacks", || async {
                let promoted = bed.client().act(LEDGER, "promote").await;
                (promoted.status == 422)
                    .then(|| promoted.problem(422, "refused").detail)
                    .filter(|why| why.contains(lacks))
            })
            .await;
            let words = ["resume", LEDGER, "--candidate", "--accept-missing"];
            cli::on(&bed.host, &words).expect(0);
        }
        bed.client()
            .becomes(LEDGER, number, GenerationStatus::Active)
            .await;
        // With the next one, the one of before and the one of now.
        let shown = bed.client().show(LEDGER).await;
        assert_eq!(shown.missing_events, number - 1);
    }
    // The count is part of the state.
    bed.host.restart().await;
    assert_eq!(bed.client().reached(LEDGER, last).await.missing_events, 2);
    assert!(bed.server.is_up());
}

#[tokio::test]
async fn a_skipped_event_that_a_mirror_has_lost_is_no_loss() {
    let mut bed = Bed::start(of_orders()).await;
    let poison = ("orders.1.placed".to_owned(), "no order".into());
    let last = nats::publish(&bed.context, [poison]).await;
    bed.client().deploy(LEDGER, &guests::module(LEDGER)).await;
    bed.client().failed(LEDGER).await;
    let sequence = last.to_string();
    let words = ["resume", LEDGER, "--skip", &sequence, "--reason", "poison"];
    cli::on(&bed.host, &words).expect(0);
    let last = bed.publish(10).await;
    bed.client().reached(LEDGER, last).await;
    bed.delete(1).await;
    assert_eq!(verified(bed.client(), LEDGER, "").await.equal, Some(true));
    bed.client().act(LEDGER, "rebuild").await.expect(200);
    bed.client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert_eq!(bed.client().show(LEDGER).await.missing_events, 0);
}

#[tokio::test]
async fn a_part_that_lacks_lost_events_is_rebuilt_only_if_that_is_meant_and_counted() {
    let mut bed = Bed::start(of_orders()).await;
    let last = bed.publish(30).await;
    bed.deploy(TALLY, last).await;
    let mirror = bed.mirror().await;
    let message = mirror.get_raw_message(2).await.expect("is there");
    let customer = message.subject.split('.').nth(1).expect("of an order");
    bed.delete(2).await;
    let action = format!("rebuild-part?key={customer}");
    let why = refused(bed.client(), TALLY, &action).await;
    assert!(why.contains("1 event that was applied is gone"), "{why}");
    bed.client()
        .act(TALLY, &format!("{action}&accept-missing=true"))
        .await
        .expect(200);
    assert_eq!(bed.client().show(TALLY).await.missing_events, 1);
}

#[tokio::test]
async fn a_past_state_of_a_mirror_that_begins_at_a_snapshot_does_not_lack_events_in_silence() {
    let mut bed = Bed::start_with(
        of_orders(),
        "[rollout]\nsnapshot_events = 5\n[state]\nflush_interval = \"100ms\"\n",
    )
    .await;
    let last = bed.publish(10).await;
    bed.deploy(LEDGER, last).await;
    let folder = bed.host.data_dir().join(format!("snapshots/{LEDGER}"));
    wait::until("a snapshot", || async {
        let found = std::fs::read_dir(&folder).ok()?;
        let is_snapshot = |name: &str| name.ends_with(".redb");
        found
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .any(|name| is_snapshot(&name))
            .then_some(())
    })
    .await;
    let last = bed.publish(4).await;
    bed.client().reached(LEDGER, last).await;
    bed.delete(last - 4).await;
    let path = format!("/v1/deployments/{LEDGER}/entries?as-of={}", last - 2);
    let why = bed.client().get(&path).await.problem(422, "refused").detail;
    assert!(why.contains("1 event that was applied is gone"), "{why}");
    let path = format!("{path}&accept-missing=true&timeout=30s");
    let past = bed.client().get(&path).await.expect(200);
    assert_eq!(past.header("foldstream-missing"), Some("1"));
    // A state that was rebuilt without it says so as well.
    bed.client()
        .act(LEDGER, "rebuild?accept-missing=true")
        .await
        .expect(200);
    bed.client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    let path = format!("/v1/deployments/{LEDGER}/entries?as-of={last}&timeout=30s");
    let past = bed.client().get(&path).await.expect(200);
    assert_eq!(past.header("foldstream-missing"), Some("1"));
}

#[tokio::test]
async fn a_skipped_event_that_a_mirror_still_has_hides_no_loss() {
    let mut bed = Bed::start(of_orders()).await;
    let poison = ("orders.1.placed".to_owned(), "no order".into());
    let poisoned = nats::publish(&bed.context, [poison]).await;
    bed.client().deploy(LEDGER, &guests::module(LEDGER)).await;
    bed.client().failed(LEDGER).await;
    let sequence = poisoned.to_string();
    let words = ["resume", LEDGER, "--skip", &sequence, "--reason", "poison"];
    cli::on(&bed.host, &words).expect(0);
    let last = bed.publish(10).await;
    bed.client().reached(LEDGER, last).await;
    bed.delete(last - 4).await;
    let lacks = "1 event that was applied is gone from stream MIRROR";
    let path = format!("/v1/deployments/{LEDGER}/entries?as-of={last}&timeout=30s");
    let why = bed.client().get(&path).await.problem(422, "refused").detail;
    assert!(why.contains(lacks), "{why}");
    for action in ["rebuild", "verification"] {
        let why = refused(bed.client(), LEDGER, action).await;
        assert!(why.contains(lacks), "{why}");
    }
}

#[tokio::test]
async fn a_past_state_of_a_mirror_that_can_not_be_counted_is_not_ready() {
    // The reader of the deployment takes one of them, and each count three.
    let mut bed = Bed::start(stream::Config {
        max_consumers: 2,
        ..of_orders()
    })
    .await;
    let last = bed.publish(10).await;
    bed.deploy(LEDGER, last).await;
    let path = format!("/v1/deployments/{LEDGER}/entries?as-of={last}&timeout=30s");
    let why = bed
        .client()
        .get(&path)
        .await
        .problem(503, "not-ready")
        .detail;
    assert!(
        why.contains("it is unknown which events the stream has lost"),
        "{why}"
    );
}

#[tokio::test]
async fn a_past_state_of_a_mirror_that_was_away_is_checked_before_it_is_answered() {
    let mut bed = Bed::start(of_orders()).await;
    let last = bed.publish(10).await;
    bed.deploy(LEDGER, last).await;
    bed.delete(last - 4).await;
    bed.server.stop();
    let path = format!("/v1/deployments/{LEDGER}/entries?as-of={last}");
    let waits = bed.client().get(&format!("{path}&timeout=1s")).await;
    let why = waits.problem(503, "not-ready").detail;
    assert!(why.contains("still being built"), "{why}");
    bed.server.restart().await;
    let why = wait::until("an answer", || async {
        let answer = bed.client().get(&format!("{path}&timeout=30s")).await;
        (answer.status != 503).then(|| answer.problem(422, "refused").detail)
    })
    .await;
    assert!(why.contains("1 event that was applied is gone"), "{why}");
}

#[tokio::test]
async fn a_past_state_of_a_mirror_that_loses_an_event_while_it_is_built_does_not_lack_it_in_silence()
 {
    let mut bed = Bed::start(of_orders()).await;
    let last = bed.publish(6_000).await;
    bed.deploy(LEDGER, last).await;
    let path = format!("/v1/deployments/{LEDGER}/entries?limit=1&as-of={last}");
    let waits = bed.client().get(&format!("{path}&timeout=1ms")).await;
    let why = waits.problem(503, "not-ready").detail;
    assert!(why.contains("still being built"), "{why}");
    bed.delete(last).await;
    let answer = wait::until("an answer", || async {
        let answer = bed.client().get(&format!("{path}&timeout=30s")).await;
        (answer.status != 503).then_some(answer)
    });
    let why = answer.await.problem(422, "refused").detail;
    assert!(why.contains("1 event that was applied is gone"), "{why}");
}
