//! What an operator sees of a stream.

use async_nats::jetstream::stream::{Config, StorageType};
use foldstream::source::jetstream::{JetStream, Options};

use crate::reading::options;
use crate::server::{Server, numbered, orders, publish, until};

#[tokio::test]
async fn stream_is_described_with_its_risks() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let source = JetStream::new(options(&server)).expect("the settings are sound");

    let missing = source.info().await;
    assert!(!missing.reachable);
    assert!(
        missing
            .message
            .is_some_and(|message| message.contains("ORDERS does not exist"))
    );

    let config = Config {
        deny_delete: true,
        deny_purge: true,
        storage: StorageType::Memory,
        ..orders()
    };
    let stream = jetstream.create_stream(config).await.expect("stream");
    let empty = source.info().await;
    assert!(empty.reachable);
    assert_eq!(
        (empty.first_sequence, empty.last_sequence, empty.events),
        (Some(0), Some(0), Some(0))
    );

    publish(&jetstream, numbered(0..10)).await;
    let info = source.info().await;
    assert_eq!(
        (info.name.as_str(), info.kind, info.stream.as_str()),
        ("test", "jetstream", "ORDERS")
    );
    assert_eq!(
        (info.first_sequence, info.last_sequence, info.events),
        (Some(1), Some(10), Some(10))
    );
    assert!(info.bytes > Some(0) && info.message.is_none());
    let names = |word: &str| info.warnings.iter().any(|warning| warning.contains(word));
    assert!(
        names("storage is memory") && names("one replica"),
        "{:?}",
        info.warnings
    );
    assert!(!names("deny_delete"), "{:?}", info.warnings);
    drop(stream);
}

#[tokio::test]
async fn unreachable_server_is_an_answer_and_recovery_is_noticed() {
    let mut server = Server::prepare("");
    let source = JetStream::new(options(&server)).expect("the settings are sound");
    let info = source.info().await;
    assert!(!info.reachable);
    assert!(
        info.message
            .is_some_and(|message| message.contains("cannot connect"))
    );

    for _ in 0..2 {
        server.run().await;
        let jetstream = server.jetstream().await;
        jetstream.create_stream(orders()).await.expect("stream");
        until("the source is reachable", async || {
            source.info().await.reachable.then_some(())
        })
        .await;
        server.kill();
        assert!(!source.info().await.reachable);
    }
    let nowhere = Options {
        servers: vec!["nats://127.0.0.1:1".to_owned()],
        ..options(&server)
    };
    assert!(
        !JetStream::new(nowhere)
            .expect("the settings are sound")
            .info()
            .await
            .reachable
    );
}
