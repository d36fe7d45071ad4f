//! Requests to every route in the OpenAPI description: each gets a response, and none is an
//! internal error.

use fastrand::Rng;
use foldstream::serve;
use foldstream_tests::fuzz::plain_http::{Connection, Response};
use foldstream_tests::fuzz::{change, drive, text};
use foldstream_tests::guests;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::log::{Headers, assert_problem};

/// Requests between two looks whether the deployment is there.
const ROUND: u64 = 300;
/// Most memory that a host of this size may hold, in bytes.
const MEMORY_MAX: u64 = 1 << 30;

const WORDS: &[&str] = &[
    "%00",
    "%2F",
    "%2f..%2f",
    "/../",
    "//",
    "/",
    "?",
    "&",
    "=",
    ";",
    "#",
    "%",
    "%zz",
    "%ff",
    "+",
    "at-least=",
    "as-of=1",
    "&limit=0",
    "&limit=10000",
    "prefix=%F4%8F%BF%BF",
    "generation=1",
    "\u{ff}",
    "timeout=0s",
    "timeout=1m",
    "*",
    "[",
    "|",
];

/// A route, with its parameters by their place.
struct Route {
    method: String,
    path: String,
    query: Vec<(String, Value)>,
    takes_body: bool,
}

/// A host with a ledger, and requests to it.
struct World {
    runtime: Runtime,
    stage: Stage,
    connection: Connection,
    routes: Vec<Route>,
    sent: u64,
}

#[test]
fn every_request_is_answered_and_none_is_a_failure_of_the_host() {
    let runtime = Runtime::new().expect("a runtime");
    let mut stage = runtime.block_on(Stage::with_ledger(Kind::Embedded));
    runtime.block_on(stage.publish(500));
    let connection = Connection::new(stage.host.url());
    let mut world = World {
        runtime,
        stage,
        connection,
        routes: routes(),
        sent: 0,
    };
    drive::run("http", 900, |rng| world.case(rng));
    world.look();
    let output = world.stage.host.output();
    assert!(!output.contains("panicked"), "{output}");
}

fn routes() -> Vec<Route> {
    let document = serde_json::to_value(serve::document()).expect("the description is plain data");
    let paths = document["paths"].as_object().expect("it has paths");
    let of = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().expect("a path has methods").clone();
        let path = path.clone();
        methods.into_iter().map(move |(method, operation)| {
            let parameters = operation["parameters"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let query = parameters
                .into_iter()
                .filter(|parameter| parameter["in"] == "query");
            let name = |parameter: &Value| {
                parameter["name"]
                    .as_str()
                    .expect("it has a name")
                    .to_owned()
            };
            Route {
                method: method.to_uppercase(),
                path: path.clone(),
                query: query
                    .map(|parameter| (name(&parameter), parameter["schema"].clone()))
                    .collect(),
                takes_body: !operation["requestBody"].is_null(),
            }
        })
    };
    paths.iter().flat_map(of).collect()
}

/// A text as a target may hold it: what would end the line is always encoded, the rest mostly.
fn encoded(rng: &mut Rng, text: &[u8]) -> Vec<u8> {
    let is_careless = rng.u8(0..6) == 0;
    let mut encoded = Vec::with_capacity(text.len());
    for byte in text {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
        if is_plain || is_careless && !matches!(byte, 0..=b' ' | 0x7f) {
            encoded.push(*byte);
        } else {
            encoded.extend(format!("%{byte:02X}").into_bytes());
        }
    }
    encoded
}

fn segment(rng: &mut Rng, name: &str) -> String {
    let known: &[&str] = match name {
        "name" => &[LEDGER, LEDGER, LEDGER, LEDGER, LEDGER, "other"],
        "query" => &["customer", "head", "totals", "top"],
        "sequence" => &[
            "1",
            "7",
            "0",
            "18446744073709551615",
            "99999999999999999999",
        ],
        _ => &[
            "head",
            "customer/1",
            "customer/7",
            "pair/left",
            "pair%2Fleft",
        ],
    };
    if rng.u8(0..6) == 0 {
        text::any(rng)
    } else {
        (*rng.choice(known).expect("some")).to_owned()
    }
}

fn value(rng: &mut Rng, name: &str, schema: &Value) -> String {
    if rng.u8(0..6) == 0 {
        return text::any(rng);
    }
    let choices = schema["enum"]
        .as_array()
        .filter(|choices| !choices.is_empty());
    match (name, schema["type"].to_string().as_str()) {
        _ if choices.is_some() => {
            let choice = rng
                .choice(choices.expect("it was just seen"))
                .expect("some");
            choice.as_str().unwrap_or_default().to_owned()
        }
        ("as-of" | "after" | "at-least", _) if rng.bool() => rng.u16(0..600).to_string(),
        ("timeout", _) => (*rng
            .choice(&["0ms", "1ms", "20ms", "1x", "", "-1s", "999999m"])
            .expect("some"))
        .to_owned(),
        ("as-of", _) => text::time(rng),
        ("prefix" | "start" | "end" | "key", _) => segment(rng, "key"),
        (_, kind) if kind.contains("integer") => text::number(rng),
        (_, kind) if kind.contains("boolean") => {
            (*rng.choice(&["true", "false", "1", ""]).expect("some")).to_owned()
        }
        _ => text::any(rng),
    }
}

fn headers(rng: &mut Rng) -> Headers {
    let names = [
        "accept",
        "accept-encoding",
        "if-none-match",
        "content-type",
        "range",
        "last-event-id",
        "origin",
        "authorization",
        "x-forwarded-for",
        "expect",
        "cookie",
        "ce-id",
        "upgrade",
        "access-control-request-method",
        "if-match",
    ];
    let values = [
        "*/*",
        "text/event-stream",
        "application/cloudevents-batch+json",
        "application/json",
        "application/wasm",
        "\"1-2\"",
        "W/\"x\"",
        "*",
        "1",
        "18446744073709551616",
        "null",
        "http://127.0.0.1",
        "Bearer x",
        "bytes=0-",
        "gzip",
        "\"",
        ",,;q=",
    ];
    let mut headers = Headers::new();
    for _ in 0..rng.usize(0..4) {
        let name = (*rng.choice(&names).expect("some")).to_owned();
        let mut value = if rng.bool() {
            rng.choice(&values).expect("some").as_bytes().to_vec()
        } else {
            text::any(rng).into_bytes()
        };
        value.retain(|byte| !matches!(byte, b'\r' | b'\n' | 0));
        headers.push((name, value));
    }
    headers
}

impl World {
    fn target(&self, rng: &mut Rng) -> (String, Vec<u8>, bool) {
        let route = rng.choice(&self.routes).expect("some");
        let mut target = Vec::new();
        for part in route.path.split('/').skip(1) {
            target.push(b'/');
            match part
                .strip_prefix('{')
                .and_then(|part| part.strip_suffix('}'))
            {
                Some(name) => {
                    let text = segment(rng, name.trim_start_matches('*'));
                    target.extend(encoded(rng, text.as_bytes()));
                }
                None => target.extend(part.as_bytes()),
            }
        }
        let mut separator = b'?';
        for (name, schema) in &route.query {
            if rng.u8(0..3) == 0 {
                target.push(separator);
                separator = b'&';
                let text = value(rng, name, schema);
                target.extend([name.as_bytes(), b"=", &encoded(rng, text.as_bytes())].concat());
            }
        }
        if rng.u8(0..5) == 0 {
            target = change::changed(rng, &target, WORDS);
            target.retain(|byte| !matches!(byte, 0..=b' ' | 0x7f));
            if target.first() != Some(&b'/') {
                target.insert(0, b'/');
            }
        }
        (route.method.clone(), target, route.takes_body)
    }

    fn case(&mut self, rng: &mut Rng) -> &'static str {
        self.sent += 1;
        if self.sent.is_multiple_of(ROUND) {
            self.look();
        }
        let (mut method, target, takes_body) = self.target(rng);
        if rng.u8(0..12) == 0 {
            method = (*rng
                .choice(&[
                    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "X",
                ])
                .expect("some"))
            .to_owned();
        }
        let mut body = Vec::new();
        if takes_body || rng.u8(0..10) == 0 {
            let sound = text::json(rng, 3);
            body = change::changed(
                rng,
                sound.as_bytes(),
                &["{", "}", "\0asm\x01\0\0\0", "null"],
            );
        }
        let response = self.connection.send(&method, &target, &headers(rng), &body);
        let shown = || format!("{method} {}", String::from_utf8_lossy(&target));
        let Some(response) = response else {
            assert!(
                !self.stage.host.has_ended(),
                "{}: the host ended: {}",
                shown(),
                self.stage.host.output()
            );
            return "closed";
        };
        assert!(
            (200..600).contains(&response.status) && response.status != 500,
            "{}: {}",
            shown(),
            response.text()
        );
        judge(&method, &shown(), &response)
    }

    /// The host lives, within its memory, and has its deployment.
    fn look(&mut self) {
        assert!(
            !self.stage.host.has_ended(),
            "the host ended: {}",
            self.stage.host.output()
        );
        let bytes = self.stage.host.memory_bytes();
        assert!(bytes < MEMORY_MAX, "the host holds {bytes} bytes");
        let client = self.stage.client().clone();
        self.runtime.block_on(async {
            client.get("/livez").await.expect(200);
            // Requests pause and delete it too.
            foldstream_tests::wait::until("the ledger to be there", || async {
                let answer = client
                    .upload(guests::module("ledger"), &format!("?name={LEDGER}"))
                    .await;
                let may_pass = matches!(answer.status.as_u16(), 409 | 503);
                (answer.status.is_success() || may_pass).then_some(())
            })
            .await;
        });
    }
}

fn judge(method: &str, shown: &str, response: &Response) -> &'static str {
    match response.status {
        200..300 => "done",
        // Redirects are nothing that any route answers with.
        304 => "not modified",
        300..400 => panic!("{shown}: {}", response.status),
        404 | 405 if method == "HEAD" => "refused",
        _ if method == "HEAD" => "refused",
        507 => "no room",
        // Probes tell whether the host is ready, and why not.
        503 if shown.contains("/readyz") || shown.contains("/startupz") => "not ready",
        _ => {
            assert_problem(response);
            "refused"
        }
    }
}
