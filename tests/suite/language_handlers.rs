//! Handlers in every language that has them: made, tested, built, deployed and seen to publish, as
//! a user would; the same messages, timers and entries, and the same failures.

use std::collections::BTreeMap;
use std::time::Duration;

use foldstream::api::{NewEvent, PendingTimers, WaitingMessages};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{cli, guests, reactor};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::languages::{GO, Language, PYTHON, TYPESCRIPT, made, module, run_in};

/// What the template of a handler has in a language.
struct Template {
    language: &'static Language,
    /// The file with the handler, a line in it, and what makes that line throw.
    source: &'static str,
    line: &'static str,
    throws: &'static str,
    /// What an operator then reads of where it was thrown, and in the log.
    told: [&'static str; 2],
    /// The file that says that it is a handler, the words, and what a build says without them.
    kind: [&'static str; 3],
}

const IN_TYPESCRIPT: Template = Template {
    language: &TYPESCRIPT,
    source: "src/index.ts",
    line: "    const timer = `payment/${id}`;\n",
    throws: "    const timer = (event as any).nothing(id);\n",
    told: ["(handle src/index.ts:37)", "at handle (src/index.ts:37)"],
    kind: [
        "package.json",
        "\"kind\": \"handler\"",
        "the module must export its projection: export default class … extends Projection; a \
         handler needs \"foldstream\": { \"kind\": \"handler\" } in package.json",
    ],
};

const IN_PYTHON: Template = Template {
    language: &PYTHON,
    source: "src/order_tasks.py",
    line: "        id = event.token(2)\n",
    throws: "        id = {}[event.token(2)]\n",
    told: [
        "KeyError: '7' (order_tasks.py, line 40, in paid)",
        "File \"order_tasks.py\", line 40, in paid",
    ],
    kind: [
        "pyproject.toml",
        "kind = \"handler\"",
        "order_tasks must define one class that extends Projection; it has none; a handler needs \
         kind = \"handler\" in [tool.foldstream]",
    ],
};

const IN_GO: Template = Template {
    language: &GO,
    source: "main.go",
    line: "\t\torders.Edit(id)\n",
    throws: "\t\torders.Edit([]string{}[len(id)])\n",
    told: [
        "panic: runtime error: index out of range [1] with length 0 (main.go:40)",
        "at main.OrderTasks.func1 (order-tasks/main.go:40)",
    ],
    kind: [
        "main.go",
        "func init() { handler.Export(OrderTasks) }",
        "\"foldstream/handler\" imported and not used",
    ],
};

/// Makes a project, tests and builds it, deploys it and sees what it publishes: all that its README
/// says.
async fn first_handler(template: &Template) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let project = made(template.language, "handler", folder.path(), "order-tasks");
    let module = project.join("order-tasks.wasm").display().to_string();
    let inspected = cli::run(&["inspect", &module]).expect(0).stdout;
    assert!(
        inspected.contains("tasks.*.*, if a deploy allows it"),
        "{inspected}"
    );

    let host = Host::start().await;
    let client = host.client();
    let grant = ["--allow-publish", "tasks.>@events", "--timeout", "120s"];
    let deploy = [&["deploy", &module, "--wait"][..], &grant[..]].concat();
    cli::on(&host, &deploy).expect(0);
    let append = |what: &str| cli::on(&host, &["events", "append", what]).expect(0).stdout;
    append("orders.7.placed");
    let last = append("orders.7.paid").trim().parse().expect("a sequence");
    let all_left = |shown: &foldstream::api::Deployment| {
        let outbox = shown.outbox.as_ref();
        shown.position >= last && outbox.is_some_and(|outbox| outbox.entries == 0)
    };
    let shown = client
        .show_when("order-tasks", "publish all", all_left)
        .await;
    assert_eq!(shown.timers.expect("it is a handler").pending, 0);
    let tasks = reactor::logged(client, "events", "tasks.%3E").await;
    let [task] = &tasks[..] else {
        panic!("one task: {tasks:?}")
    };
    assert_eq!(
        (&task["subject"], &task["type"], &task["data"]),
        (
            &json!("tasks.7.ship"),
            &json!("ship"),
            &json!({"order": "7"})
        )
    );
    let asked = cli::on(&host, &["query", "order-tasks", "order", "\"7\""]).expect(0);
    let order: Value = serde_json::from_str(&asked.stdout).expect("is JSON");
    assert_eq!(order, json!({"paid": true, "reminders": 0}));

    // What the module throws reaches the operator in the terms of its language.
    let source = project.join(template.source);
    let text = std::fs::read_to_string(&source).expect("it is there");
    assert!(text.contains(template.line), "{text}");
    std::fs::write(&source, text.replace(template.line, template.throws)).expect("written");
    run_in(&project, &["foldstream", "build"]).expect(0);
    cli::on(&host, &["deploy", &module, "--name", "thrower"]).expect(0);
    let (_, failure) = client.failed("thrower").await;
    assert!(failure.message.contains(template.told[0]), "{failure:?}");
    host.prints(template.told[1]).await;

    std::fs::write(&source, text).expect("written");
    let [file, words, told] = template.kind;
    let file = project.join(file);
    let text = std::fs::read_to_string(&file).expect("it is there");
    assert!(text.contains(words), "{text}");
    std::fs::write(&file, text.replace(words, "")).expect("written");
    let refused = run_in(&project, &["foldstream", "build"]).expect(1).stderr;
    assert!(refused.contains(told), "{refused}");
}

#[tokio::test]
async fn a_first_handler_in_typescript_works_as_its_readme_says() {
    first_handler(&IN_TYPESCRIPT).await;
}

#[tokio::test]
async fn a_first_handler_in_python_works_as_its_readme_says() {
    first_handler(&IN_PYTHON).await;
}

#[tokio::test]
async fn a_first_handler_in_go_works_as_its_readme_says() {
    first_handler(&IN_GO).await;
}

#[test]
fn a_first_handler_in_rust_tests_and_builds_as_its_readme_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let new = ["new", "--kind", "handler", "order-tasks"];
    cli::run_in(folder.path(), &new).expect(0);
    let text = std::fs::read_to_string(folder.path().join("order-tasks/src/lib.rs"));
    let essence = |text: &str| text.split_whitespace().collect::<String>();
    let template = std::fs::read_to_string(guests::folder("starter-handler").join("src/lib.rs"));
    let template = template
        .expect("it is there")
        .replace("\"starter-handler\"", "\"order-tasks\"")
        .replace("Starter", "OrderTasks")
        .replace("starter", "order_tasks");
    // The template itself is a crate of the workspace, which is built and tested in its place.
    assert_eq!(essence(&text.expect("it was made")), essence(&template));
    let scenarios = guests::folder("starter-handler").join("scenarios.yaml");
    let module = guests::path("starter-handler").display().to_string();
    let tested = cli::run(&["test", &module, &scenarios.display().to_string()]).expect(0);
    assert!(tested.stdout.contains("2 passed, 0 failed"), "{tested:?}");
}

#[test]
fn a_language_without_handlers_says_which_have_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let new = ["new", "--lang", "c", "--kind", "handler", "mine"];
    let refused = cli::run_in(folder.path(), &new).expect(2).stderr;
    assert!(
        refused.contains("writes no handlers yet") && refused.contains("TypeScript, Go"),
        "{refused}"
    );
    assert!(!folder.path().join("mine").exists());
}

/// The deployment of the guest `answers`, whatever its language.
const ANSWERS: &str = "answers";

fn asks(key: &str, what: &str, headers: &[(&str, &str)]) -> NewEvent {
    let headers: BTreeMap<_, _> = headers.iter().copied().collect();
    let event = json!({"subject": format!("in.{key}.{what}"), "data": {}, "headers": headers});
    serde_json::from_value(event).expect("an event")
}

/// What events of the first key ask for, in order.
const WHATS: [&str; 15] = [
    "alone",
    "three",
    "plain",
    "text",
    "bytes",
    "keyed",
    "later",
    "past",
    "brief",
    "first",
    "first",
    "replace",
    "timer",
    "keyed-timer",
    "quiet",
];

/// What one module did: everything that must not depend on its language.
async fn done(module: &[u8]) -> Value {
    let server = NatsServer::start().await;
    let config = async_nats::jetstream::stream::Config {
        allow_message_ttl: true,
        ..nats::stream_config("OUT", "out.>")
    };
    nats::create_stream_with(&server.jetstream().await, config).await;
    let requester = async_nats::connect(server.url()).await.expect("connects");
    let mut replies = requester
        .subscribe("_INBOX.test.>")
        .await
        .expect("subscribes");
    let host = reactor::host_with_stream(&server.url(), "").await;
    let client = host.client();
    let grants = "&source=events&allow-publish=out.%3E%40out,_INBOX.%3E%40out";
    client.deploy_with(ANSWERS, module, grants).await;

    let ask = |what: &&str| asks("a", what, &[]);
    let mut events: Vec<_> = WHATS.iter().map(ask).collect();
    events.extend([
        asks("b", "three", &[]),
        asks("b", "timer", &[]),
        asks("b", "cancel", &[]),
    ]);
    for inbox in ["_INBOX.test.1", "out.b.stolen", "_INBOX.*"] {
        events.push(asks("b", "reply", &[("foldstream-reply-to", inbox)]));
    }
    let appended = client.append(&events).await;
    // Behind the events are the firings of the three timers that are due.
    settled(client, appended.last_sequence + 3).await;
    let reply = tokio::time::timeout(Duration::from_secs(60), replies.next()).await;
    let reply = reply.expect("in time").expect("it is subscribed");
    let mut seen = seen(client, &server).await;
    seen["reply"] = json!([
        reply.subject.as_str(),
        String::from_utf8_lossy(&reply.payload)
    ]);

    for what in ["fail", "half", "retry", "elsewhere"] {
        // Behind it is one that is handled after all.
        let events = [asks("a", what, &[]), asks("a", "three", &[])];
        let last = client.append(&events).await.last_sequence;
        let (_, failure) = client.failed(ANSWERS).await;
        let line = failure.message.lines().next();
        seen[what] = json!([failure.class, failure.sequence, failure.attempts, line]);
        let skip = (last - 1).to_string();
        let skip = ["resume", ANSWERS, "--skip", &skip, "--reason", "a test"];
        cli::on(&host, &skip).expect(0);
        settled(client, last).await;
    }
    host.prints("half a\u{fffd}").await;
    seen["after"] = self::seen(client, &server).await;
    seen
}

/// Waits until everything has left that does not wait for a time or an operator.
async fn settled(client: &Client, sequence: u64) {
    let condition = |shown: &foldstream::api::Deployment| {
        let outbox = shown.outbox.as_ref();
        shown.position >= sequence
            && outbox.is_some_and(|outbox| outbox.entries == outbox.delayed + outbox.conflicts)
    };
    client.show_when(ANSWERS, "settle", condition).await;
}

/// Messages, what waits, timers and entries, without what differs from host to host.
async fn seen(client: &Client, server: &NatsServer) -> Value {
    let shown = client.show(ANSWERS).await;
    let lineage = shown.outbox.expect("it is a handler").lineage;
    let alike = |text: &str| text.replace(&lineage, "LINEAGE");
    let stored = reactor::messages(&server.jetstream().await, "OUT").await;
    let mut messages: Vec<_> = stored
        .iter()
        .filter(|message| !reactor::is_cursor(&message.subject))
        .map(|message| {
            let headers = message.headers.iter();
            let headers: BTreeMap<_, _> = headers
                .filter(|(name, _)| !name.to_string().eq_ignore_ascii_case("ce-time"))
                .map(|(name, values)| (name.to_string(), alike(values[0].as_str())))
                .collect();
            json!([
                headers["Nats-Msg-Id"],
                message.subject.as_str(),
                headers,
                &*message.payload
            ])
        })
        .collect();
    // Those of different keys leave in any order.
    messages.sort_by_key(ToString::to_string);
    let path = |what: &str| format!("/v1/deployments/{ANSWERS}/{what}?limit=1000");
    let waiting: WaitingMessages = client.get(&path("outbox")).await.expect(200).json();
    let waiting: Vec<_> = waiting
        .messages
        .into_iter()
        .map(|message| {
            let condition = message.expected_last;
            let place = (alike(&message.id), message.sequence, message.bytes);
            let condition = condition.map(|last| (last.subject, last.sequence));
            let is_delayed = message.not_before.is_some();
            json!([
                place,
                message.subject,
                message.kind,
                message.key,
                is_delayed,
                condition
            ])
        })
        .collect();
    let timers: PendingTimers = client.get(&path("timers")).await.expect(200).json();
    let timers: Vec<_> = timers
        .timers
        .into_iter()
        .map(|timer| json!([timer.name, timer.set_by, timer.key]))
        .collect();
    json!({
        "messages": messages,
        "waiting": waiting,
        "timers": timers,
        "entries": client.entries(ANSWERS, "").await,
        "query": client.query(ANSWERS, "handled", &json!("a")).await.value(),
        "inbox": shown.inbox.is_some(),
    })
}

#[tokio::test]
async fn a_handler_has_the_same_effects_and_fails_alike_in_every_language() {
    let wanted = done(&guests::module(ANSWERS)).await;
    let count = |list: &Value| list.as_array().expect("a list").len();
    assert_eq!(count(&wanted["messages"]), 17, "{wanted:#}");
    assert_eq!(count(&wanted["waiting"]), 2, "{wanted:#}");
    assert_eq!(count(&wanted["timers"]), 2, "{wanted:#}");
    for language in ["typescript/test", "python/tests", "go/tests"] {
        let module = module(&format!("{language}/guests/{ANSWERS}"));
        let found = done(&module).await;
        assert_eq!(found, wanted, "{language}: {found:#}\n{wanted:#}");
    }
}
