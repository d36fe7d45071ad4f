//! What others may publish to our inbox is no event.

use futures_util::StreamExt as _;

use crate::reading::{Reading, numbers, options, request};
use crate::server::{Server, numbered, orders, publish, within};

#[tokio::test]
async fn event_with_a_reply_subject_that_is_not_of_our_consumer_is_not_taken() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..10)).await;
    let forger = async_nats::connect(server.url())
        .await
        .expect("the server is there");
    let mut asked = forger
        .subscribe("$JS.API.CONSUMER.MSG.NEXT.ORDERS.>")
        .await
        .expect("may look");
    forger.flush().await.expect("the server is there");

    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let (events, _) = reading.events(10).await;
    assert_eq!(numbers(&events), (0..10).collect::<Vec<_>>());
    let request = within("a request", asked.next())
        .await
        .expect("the subscription lives");
    let inbox = request.reply.expect("events are asked for with an inbox");
    for stream in ["ORDERS", "OTHER"] {
        let reply = format!("$JS.ACK.{stream}.forged.1.11.11.1700000000000000000.0");
        let data = r#"{"number":666}"#.into();
        forger
            .publish_with_reply(inbox.clone(), reply, data)
            .await
            .expect("may publish");
    }
    forger.flush().await.expect("the server is there");
    publish(&jetstream, numbered(10..12)).await;

    let rest = reading.through(12).await;
    assert_eq!(numbers(&rest), [10, 11]);
}
