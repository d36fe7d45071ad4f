//! What the server has to allow, and what happens while it does not.

use foldstream::api::SourceState;
use foldstream::source::Request;
use foldstream::source::jetstream::{JetStream, Options};

use crate::reading::{Reading, checkpoint, numbers, options, request};
use crate::server::{Server, numbered, orders, publish, until, within};

/// The file that we hand out, with another user who may do everything.
fn handed_out(without: &str) -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/nats-permissions.conf"
    );
    let text = std::fs::read_to_string(path).expect("the file is part of the project");
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| without.is_empty() || !line.contains(without))
        .collect();
    let users = kept
        .join("\n")
        .replace("users = [", "users = [ { user: admin, password: secret }");
    users.replace("$FOLDSTREAM_PASSWORD", "secret")
}

fn granted(server: &Server) -> Options {
    Options {
        user: Some("foldstream".to_owned()),
        password: Some("secret".to_owned()),
        inbox_prefix: Some("_INBOX_FOLDSTREAM".to_owned()),
        ..options(server)
    }
}

async fn administrator(server: &Server) -> async_nats::jetstream::Context {
    let options =
        async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "secret".to_owned());
    server.jetstream_as(options).await
}

async fn fill(server: &Server) {
    let jetstream = administrator(server).await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..10)).await;
}

#[tokio::test]
async fn permissions_that_we_hand_out_are_enough_for_every_path() {
    let server = Server::start_with(&handed_out("")).await;
    fill(&server).await;
    for subjects in [
        &[">"][..],
        &["orders.1.placed"],
        &["orders.1.placed", "orders.2.*"],
    ] {
        let mut reading = Reading::begin(granted(&server), request(subjects));
        let (_, last) = reading.events(1).await;
        let resume = Some(checkpoint(&last));
        let mut resumed = Reading::begin(
            granted(&server),
            Request {
                resume,
                ..request(subjects)
            },
        );
        assert_eq!(
            resumed
                .next()
                .await
                .expect("the history is the same")
                .through,
            last.through
        );
    }
    let info = JetStream::new(granted(&server))
        .expect("the settings are sound")
        .info()
        .await;
    assert!(
        info.reachable
            && !info
                .warnings
                .iter()
                .any(|warning| warning.contains("publish to")),
        "{info:?}"
    );
}

#[tokio::test]
async fn everything_that_is_refused_is_named_at_the_first_open_and_by_an_examination() {
    let server = Server::start_with(&handed_out("MSG.")).await;
    fill(&server).await;
    let mut reading = Reading::begin(granted(&server), request(&[">"]));
    let message = reading.state(SourceState::Unauthorized).await;
    for subject in [
        "$JS.API.STREAM.MSG.GET.ORDERS",
        "$JS.API.CONSUMER.MSG.NEXT.ORDERS.>",
    ] {
        assert!(message.contains(subject), "{message}");
    }
    let info = JetStream::new(granted(&server))
        .expect("the settings are sound")
        .info()
        .await;
    assert!(
        info.obstacle
            .as_ref()
            .is_some_and(|obstacle| obstacle.contains("STREAM.MSG.GET")),
        "{info:?}"
    );
}

#[tokio::test]
async fn user_who_may_not_delete_consumers_reads_and_is_warned() {
    let server = Server::start_with(&handed_out("CONSUMER.DELETE")).await;
    fill(&server).await;
    for _ in 0..3 {
        let mut reading = Reading::begin(granted(&server), request(&[">"]));
        assert_eq!(reading.events(10).await.0.len(), 10);
        assert_eq!(reading.status.borrow().state, SourceState::Reading);
    }
    let info = JetStream::new(granted(&server))
        .expect("the settings are sound")
        .info()
        .await;
    assert!(
        info.warnings
            .iter()
            .any(|warning| warning.contains("CONSUMER.DELETE")),
        "{:?}",
        info.warnings
    );
}

/// Waits for a refusal that names something.
async fn refusal(reading: &mut Reading, named: &str) {
    let Reading { reader, status } = reading;
    let is_reported = |status: &foldstream::source::Status| {
        let message = status.message.as_deref().unwrap_or_default();
        status.state == SourceState::Unauthorized && message.contains(named)
    };
    within(named, async {
        tokio::select! {
            batch = async { loop { reader.next().await.expect("the reader continues"); } } => batch,
            told = status.wait_for(is_reported) => drop(told.expect("the reader lives")),
        }
    })
    .await;
}

/// How a server gets other permissions.
enum Change {
    Reload,
    Restart,
}

#[tokio::test]
async fn permissions_taken_away_while_reading_are_named_and_given_back_are_used() {
    let mut server = Server::start_with(&handed_out("")).await;
    fill(&server).await;
    let mut reading = Reading::begin(granted(&server), request(&[">"]));
    reading.events(10).await;
    let cases = [
        ("CONSUMER.", "CONSUMER.CREATE", Change::Reload),
        ("STREAM.INFO", "STREAM.INFO", Change::Restart),
        ("STREAM.MSG", "MSG.GET", Change::Restart),
        ("_INBOX", "_INBOX", Change::Restart),
        // The server ends a subscription of the connection, which stays.
        ("_INBOX", "_INBOX", Change::Reload),
    ];
    for (count, (taken, named, change)) in (10..).zip(cases) {
        // A line of the file is taken out; of subscriptions there is one only, so that another one
        // takes its place.
        let text = match taken {
            "_INBOX" => handed_out("").replace("_INBOX_FOLDSTREAM.>", "nothing"),
            taken => handed_out(taken),
        };
        server.configure(&text);
        match change {
            Change::Reload => server.reload(),
            // A reader that reads on needs these again when it opens the stream.
            Change::Restart => {
                server.kill();
                server.run().await;
            }
        }
        refusal(&mut reading, named).await;

        server.configure(&handed_out(""));
        server.reload();
        let again = until("the server takes requests again", async || {
            let options = async_nats::ConnectOptions::with_user_and_password(
                "admin".to_owned(),
                "secret".to_owned(),
            );
            let jetstream = async_nats::jetstream::new(options.connect(server.url()).await.ok()?);
            jetstream
                .get_stream("ORDERS")
                .await
                .is_ok()
                .then_some(jetstream)
        });
        let jetstream = Box::pin(again).await;
        publish(&jetstream, numbered(count..count + 1)).await;
        assert_eq!(numbers(&reading.events(1).await.0), [count]);
    }
}
