//! The HTTP server over a real host: what it refuses, what it limits, how it ends.
//!
//! 1. refusals: paths, methods, foreign pages, addresses, tokens
//! 2. limits: bodies, heads, time, streams
//! 3. the way of an event through the API, and its stream
//! 4. the beginning and the end

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use foldstream::api;
use foldstream::config::{Config, Serve};
use foldstream::host::Host;
use foldstream::serve::{self, Entrance, Error};
use futures_util::StreamExt;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything in here.
const DEADLINE: Duration = Duration::from_secs(20);

// ---- helpers: one per verb ----

/// A host with its server, on a port of its own.
struct Served {
    address: SocketAddr,
    client: Client,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), Error>>,
    host: Host,
    _folder: TempDir,
}

fn config(folder: &TempDir, serve: Serve) -> Config {
    Config {
        data_dir: folder.path().to_owned(),
        serve,
        ..Config::default()
    }
}

fn client() -> reqwest::ClientBuilder {
    // Another test may have been first; one provider is as good as the other.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy()
}

async fn start(serve: Serve) -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Arc::new(config(&folder, serve));
    let host = Host::start(Arc::clone(&config))
        .await
        .expect("the host starts");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let shutdown = CancellationToken::new();
    let (token, shared) = (shutdown.clone(), host.clone());
    let server = tokio::spawn(async move { serve::run(listener, shared, &config, token).await });
    let client = client().build().expect("a client");
    Served {
        address,
        client,
        shutdown,
        server,
        host,
        _folder: folder,
    }
}

impl Served {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("http://{}{path}", self.address))
            .timeout(DEADLINE)
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path)
            .send()
            .await
            .expect("the host answers")
    }

    async fn append(&self, subject: &str, data: Value) -> api::Appended {
        let body = json!({ "events": [{ "subject": subject, "data": data }] });
        let answer = self
            .request(Method::POST, "/v1/events")
            .json(&body)
            .send()
            .await
            .expect("the host answers");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.expect("an answer in JSON")
    }

    /// Says these bytes on a connection of its own, and gives what comes back until the other side
    /// closes.
    async fn say(&self, bytes: Vec<u8>) -> String {
        let address = self.address;
        let said = tokio::task::spawn_blocking(move || {
            let mut connection = TcpStream::connect(address).expect("the server listens");
            connection
                .set_read_timeout(Some(DEADLINE))
                .expect("a socket has a time limit");
            // The server may close before it has read all.
            let _ = connection.write_all(&bytes);
            let mut answer = Vec::new();
            let _ = connection.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        });
        said.await.expect("the connection ends")
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.server)
            .await
            .expect("in time")
            .expect("no panic")
            .expect("no error");
        self.host.stop().await;
    }
}

async fn problem(answer: Response, status: u16, kind: &str) -> api::Problem {
    assert_eq!(
        answer.headers()["content-type"],
        "application/problem+json",
        "{answer:?}"
    );
    let found = answer.status().as_u16();
    let problem: api::Problem = answer.json().await.expect("a problem");
    assert_eq!(
        (found, problem.status, problem.kind.as_str()),
        (status, status, kind),
        "{}",
        problem.detail
    );
    problem
}

/// Reads a stream until a text has come.
async fn read_until(answer: &mut Response, wanted: &str) -> String {
    let mut text = String::new();
    let read = async {
        while !text.contains(wanted) {
            let chunk = answer
                .chunk()
                .await
                .expect("the stream continues")
                .expect("it does not end");
            text.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
    };
    tokio::time::timeout(DEADLINE, read)
        .await
        .unwrap_or_else(|_| panic!("{wanted} never came"));
    text
}

// ---- 1. refusals ----

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_a_problem_like_any_other() {
    let served = start(Serve::default()).await;
    problem(served.get("/nothing").await, 404, "not-found").await;
    problem(served.get("/v1/deployments/none").await, 404, "not-found").await;
    problem(served.get("/v1/deployments/%ff").await, 400, "invalid").await;
    let answer = served
        .request(Method::PUT, "/v1/events")
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.headers()["allow"], "GET,HEAD,POST");
    problem(answer, 405, "method-not-allowed").await;
    let misspelt = problem(served.get("/v1/events?afer=3").await, 400, "invalid").await;
    assert!(
        misspelt.detail.contains("did you mean after?"),
        "{}",
        misspelt.detail
    );
    problem(served.get("/v1/host?x=1").await, 400, "invalid").await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_tells_what_get_would_without_its_body() {
    let served = start(Serve::default()).await;
    let whole = served.get("/v1/host").await;
    let length = whole.headers()["content-length"].clone();
    let head = served
        .request(Method::HEAD, "/v1/host")
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        (head.status(), &head.headers()["content-length"]),
        (StatusCode::OK, &length)
    );
    assert!(head.bytes().await.expect("an end").is_empty());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_in_a_browser_can_not_drive_a_host_on_loopback() {
    let served = start(Serve::default()).await;
    let with = async |name: &str, value: &str, path: &str| {
        served
            .request(Method::GET, path)
            .header(name, value)
            .send()
            .await
            .expect("an answer")
    };
    problem(
        with("host", "evil.example", "/v1/host").await,
        403,
        "forbidden",
    )
    .await;
    problem(
        with("origin", "https://evil.example", "/v1/host").await,
        403,
        "forbidden",
    )
    .await;
    problem(
        with("origin", "null", "/v1/deployments").await,
        403,
        "forbidden",
    )
    .await;
    assert_eq!(
        with("host", "localhost:1", "/v1/host").await.status(),
        StatusCode::OK
    );
    assert_eq!(
        with("origin", "http://127.0.0.1:3000", "/v1/host")
            .await
            .status(),
        StatusCode::OK
    );
    assert_eq!(
        with("host", "evil.example", "/livez").await.status(),
        StatusCode::OK
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn address_that_strangers_reach_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Arc::new(config(&folder, Serve::default()));
    let host = Host::start(Arc::clone(&config))
        .await
        .expect("the host starts");
    // What counts is the address that is really listened on, whatever the configuration says.
    let listener = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let refused = serve::run(listener, host.clone(), &config, CancellationToken::new()).await;
    assert!(matches!(refused, Err(Error::Exposed { .. })), "{refused:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_token_let_in_who_has_both() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "s3cret-s3cret-s3cret\n").expect("a file");
    let serve = Serve {
        tls_cert: Some(cert),
        tls_key: Some(key),
        token_file: Some(token_file),
        ..Serve::default()
    };
    let served = start(serve).await;
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).expect("a certificate");
    let client = client().tls_certs_only([root]).build().expect("a client");
    let url = format!("https://localhost:{}/v1/host", served.address.port());
    let stranger = client
        .get(&url)
        .timeout(DEADLINE)
        .send()
        .await
        .expect("an answer");
    assert_eq!(stranger.headers()["www-authenticate"], "Bearer");
    problem(stranger, 401, "unauthorized").await;
    let owner = client
        .get(&url)
        .bearer_auth("s3cret-s3cret-s3cret")
        .timeout(DEADLINE)
        .send()
        .await;
    assert_eq!(owner.expect("an answer").status(), StatusCode::OK);
    served.stop().await;
}

/// Writes a certificate of localhost that ends in a year, with its key.
fn write_certificate(cert: &std::path::Path, key: &std::path::Path, end: i32) -> String {
    write_certificate_until(cert, key, |parameters| {
        parameters.not_after = rcgen::date_time_ymd(end, 1, 1);
    })
}

/// The same with another end.
fn write_certificate_until(
    cert: &std::path::Path,
    key: &std::path::Path,
    end: impl FnOnce(&mut rcgen::CertificateParams),
) -> String {
    let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("sound");
    end(&mut parameters);
    let pair = rcgen::KeyPair::generate().expect("a key");
    let pem = parameters.self_signed(&pair).expect("a certificate").pem();
    std::fs::write(cert, &pem).expect("a file");
    std::fs::write(key, pair.serialize_pem()).expect("a file");
    pem
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_is_replaced_while_it_serves_and_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let first = write_certificate(&cert, &key, 2060);
    let serve = Serve {
        tls_cert: Some(cert.clone()),
        tls_key: Some(key.clone()),
        ..Serve::default()
    };
    let data = tempfile::tempdir().expect("a folder");
    let config = Arc::new(config(&data, serve));
    let host = Host::start(Arc::clone(&config))
        .await
        .expect("the host starts");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!(
        "https://localhost:{}/v1/host",
        listener.local_addr().expect("it is bound").port()
    );
    let shutdown = CancellationToken::new();
    let entrance =
        Entrance::new(&listener, Arc::clone(&config), shutdown.clone()).expect("a way in");
    entrance.open(host.clone());
    let server = tokio::spawn(entrance.clone().serve(listener));
    // A new connection each time.
    let trusts = async |pem: &str| {
        let root = reqwest::Certificate::from_pem(pem.as_bytes()).expect("a certificate");
        let client = client().tls_certs_only([root]).build().expect("a client");
        client.get(&url).timeout(DEADLINE).send().await.is_ok()
    };
    assert!(trusts(&first).await);
    let metrics = async || {
        let root = reqwest::Certificate::from_pem(std::fs::read(&cert).expect("a file").as_slice())
            .expect("a certificate");
        let client = client().tls_certs_only([root]).build().expect("a client");
        let page = client
            .get(url.replace("/v1/host", "/metrics"))
            .timeout(DEADLINE)
            .send()
            .await
            .expect("an answer");
        page.text().await.expect("a text")
    };
    assert!(
        metrics()
            .await
            .contains("foldstream_tls_certificate_end_timestamp_seconds 2840140800")
    );

    std::fs::write(&cert, "no certificate").expect("a file");
    entrance.reload(&config.serve);
    assert!(trusts(&first).await, "what can't be read changes nothing");
    write_certificate(&cert, &key, 2020);
    entrance.reload(&config.serve);
    assert!(trusts(&first).await, "nor does one that has ended");

    // What is open over the former certificate stays open.
    let client_with = |pem: &str| {
        let root = reqwest::Certificate::from_pem(pem.as_bytes()).expect("a certificate");
        client().tls_certs_only([root]).build().expect("a client")
    };
    let tail = client_with(&first).get(url.replace("/v1/host", "/v1/events/tail"));
    let mut tail = tail.send().await.expect("it opens");
    assert_eq!(tail.status(), StatusCode::OK);
    let second = write_certificate(&cert, &key, 2061);
    entrance.reload(&config.serve);
    assert!(trusts(&second).await);
    assert!(!trusts(&first).await);
    let append = client_with(&second)
        .post(url.replace("/v1/host", "/v1/events"))
        .header("content-type", "application/json")
        .body(r#"{"events":[{"subject":"orders.later","data":1}]}"#)
        .send();
    assert_eq!(append.await.expect("an answer").status(), StatusCode::OK);
    let mut shown = String::new();
    while !shown.contains("orders.later") {
        let chunk = tokio::time::timeout(DEADLINE, tail.chunk()).await;
        let chunk = chunk.expect("in time").expect("it is whole");
        shown.push_str(&String::from_utf8_lossy(&chunk.expect("it stays open")));
    }
    shutdown.cancel();
    server.await.expect("no panic").expect("an orderly end");
    host.stop().await;
}

#[test]
fn certificate_that_has_ended_is_an_error_of_the_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let said = |end: i32| -> Vec<String> {
        write_certificate(&cert, &key, end);
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("ours");
        let serve = Serve {
            tls_cert: Some(cert.clone()),
            tls_key: Some(key.clone()),
            ..Serve::default()
        };
        let config = Config {
            data_dir: folder.path().join("data"),
            ..config(&folder, serve)
        };
        foldstream::preflight::problems(&config)
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let [ended] = &said(2020)[..] else {
        panic!("one finding")
    };
    assert!(
        ended.contains("ended at 2020-01-01") && ended.contains("renew"),
        "{ended}"
    );
    assert_eq!(said(2060), [""; 0]);
}

#[test]
fn doctor_says_when_the_certificate_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let config = folder.path().join("foldstream.toml");
    let text = format!(
        "data_dir = {:?}\n[serve]\nlisten = \"127.0.0.1:1\"\ntls_cert = {cert:?}\ntls_key = {key:?}\n",
        folder.path().join("data")
    );
    std::fs::write(&config, text).expect("a file");
    let doctor = || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_foldstream"))
            .args(["doctor", "-o", "json", "--config"])
            .arg(&config)
            .output()
            .expect("foldstream runs");
        let checks: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("a list of checks");
        let of_certificate = |check: &&serde_json::Value| {
            check["finding"].as_str().is_some_and(|finding| {
                finding.contains("serve.tls_cert") && finding.contains("certificate")
            })
        };
        let found = checks
            .as_array()
            .expect("a list")
            .iter()
            .find(of_certificate);
        found.map(|check| (check["status"].clone(), check["finding"].to_string()))
    };
    // In a year, yesterday, and in a few days.
    write_certificate(&cert, &key, 2060);
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("ours");
    assert_eq!(doctor(), None);
    write_certificate(&cert, &key, 2020);
    let (status, finding) = doctor().expect("it is looked at");
    assert_eq!(status, "fail", "{finding}");
    assert!(finding.contains("ended at 2020-01-01"), "{finding}");
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(6 * 24 + 12);
    let soon = soon.to_zoned(jiff::tz::TimeZone::UTC).date();
    let [month, day] =
        [soon.month(), soon.day()].map(|number| u8::try_from(number).expect("small"));
    write_certificate_until(&cert, &key, |parameters| {
        parameters.not_after = rcgen::date_time_ymd(i32::from(soon.year()), month, day);
    });
    let (status, finding) = doctor().expect("it is looked at");
    assert_eq!(status, "warn", "{finding}");
    assert!(
        finding.contains("ends in 5 days") || finding.contains("ends in 6 days"),
        "{finding}"
    );
}

/// A host that speaks HTTP/2, with its certificate.
async fn start_with_tls(folder: &TempDir) -> (Served, std::path::PathBuf) {
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    write_certificate(&cert, &key, 2060);
    let serve = Serve {
        tls_cert: Some(cert.clone()),
        tls_key: Some(key),
        ..Serve::default()
    };
    (start(serve).await, cert)
}

/// Begins a connection of HTTP/2 with these settings.
fn speak(
    address: SocketAddr,
    cert: &std::path::Path,
    settings: &[u8],
) -> impl Read + Write + use<> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let root = rustls::pki_types::CertificateDer::from_pem_file(cert).expect("a certificate");
    roots.add(root).expect("a root");
    let mut config = rustls::ClientConfig::builder_with_provider(
        rustls::crypto::ring::default_provider().into(),
    )
    .with_safe_default_protocol_versions()
    .expect("sound")
    .with_root_certificates(roots)
    .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = "localhost".try_into().expect("a name");
    let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
    let socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(DEADLINE * 6)).expect("sound");
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .expect("it is sent");
    stream
        .write_all(&frame(4, 0, 0, settings))
        .expect("it is sent");
    let mut head = [0; 9];
    stream.read_exact(&mut head).expect("an answer");
    assert_eq!(stream.conn.alpn_protocol(), Some(b"h2".as_slice()));
    assert_eq!(head[3], 4, "its settings come first");
    let mut rest = vec![0; usize::from(head[2])];
    stream.read_exact(&mut rest).expect("they are complete");
    stream
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("a short one");
    [
        &[0, 0, length, kind, flags][..],
        &stream.to_be_bytes(),
        content,
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_it_speaks_the_second_version_to_who_wants_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (served, cert) = start_with_tls(&folder).await;
    let address = served.address;
    tokio::task::spawn_blocking(move || drop(speak(address, &cert, &[])))
        .await
        .expect("it spoke");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_client_leaves_in_their_streams_are_charged_and_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let (served, cert) = start_with_tls(&folder).await;
    let address = served.address;
    let left = tokio::task::spawn_blocking(move || {
        // No stream may send anything.
        let mut connection = speak(address, &cert, &[0, 4, 0, 0, 0, 0]);
        for stream in 0..100 {
            let request = b"\x82\x87\x41\x09localhost\x04\x06/livez";
            connection
                .write_all(&frame(1, 5, 2 * stream + 1, request))
                .expect("it is sent");
        }
        // It is alive: only the answers are left.
        let mut head = [0; 9];
        while connection.read_exact(&mut head).is_ok() {
            let mut content = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            let is_ping = (head[3], head[4]) == (6, 0);
            if connection.read_exact(&mut content).is_err()
                || is_ping && connection.write_all(&frame(6, 1, 0, &content)).is_err()
            {
                break;
            }
        }
    });
    let used = || {
        served
            .host
            .memory()
            .used_for(foldstream::memory::Purpose::Request)
    };
    let begun = std::time::Instant::now();
    while used() < 100 * 4_096 {
        assert!(begun.elapsed() < DEADLINE, "{} bytes are charged", used());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    left.await.expect("the host ends the connection");
    while used() > 0 {
        assert!(
            begun.elapsed() < DEADLINE * 6,
            "{} bytes are still charged",
            used()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    served.stop().await;
}

// ---- 2. limits ----

#[tokio::test(flavor = "multi_thread")]
async fn body_beyond_the_limit_gets_its_answer_while_it_is_still_sent() {
    let served = start(Serve {
        body_bytes_max: 64 << 10,
        ..Serve::default()
    })
    .await;
    let json = |request: RequestBuilder| request.header("content-type", "application/json");
    let whole = json(served.request(Method::POST, "/v1/events"))
        .body(vec![b' '; 100 << 10])
        .send()
        .await;
    problem(whole.expect("an answer"), 413, "too-large").await;
    let pieces =
        futures_util::stream::iter((0..25).map(|_| Ok::<_, std::io::Error>(vec![b' '; 4 << 10])));
    let chunked = json(served.request(Method::POST, "/v1/events"))
        .body(reqwest::Body::wrap_stream(pieces))
        .send();
    problem(chunked.await.expect("an answer"), 413, "too-large").await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_beyond_the_limit_is_refused() {
    let served = start(Serve::default()).await;
    let long = format!(
        "GET /v1/host HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    // The connection is closed with some of the head unread, which may overtake the answer.
    let answer = served.say(long.into_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    let many = format!(
        "GET /v1/host HTTP/1.1\r\nhost: localhost\r\n{}\r\n",
        "x: y\r\n".repeat(100)
    );
    assert!(
        served
            .say(many.into_bytes())
            .await
            .starts_with("HTTP/1.1 431 ")
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_takes_too_long_is_ended() {
    let served = start(Serve {
        request_timeout: Duration::from_millis(200),
        ..Serve::default()
    })
    .await;
    let unfinished = "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: \
                      application/json\r\ncontent-length: 100\r\n\r\n{";
    let answer = served.say(unfinished.as_bytes().to_vec()).await;
    assert!(
        answer.starts_with("HTTP/1.1 504 ") && answer.contains("\"type\":\"timeout\""),
        "{answer}"
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_beyond_their_number_is_refused_until_another_ends() {
    let served = start(Serve {
        watches_max: 1,
        ..Serve::default()
    })
    .await;
    let mut first = served.get("/v1/events/tail").await;
    read_until(&mut first, "event: position").await;
    let metrics = async || served.get("/metrics").await.text().await.expect("a page");
    assert!(metrics().await.contains("\nfoldstream_watches_open 1\n"));
    let second = served.get("/v1/events/tail").await;
    assert!(second.headers().contains_key("retry-after"));
    problem(second, 503, "busy").await;
    drop(first);
    let admitted = async {
        while served.get("/v1/events/tail").await.status() != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, admitted)
        .await
        .expect("the place becomes free");
    served.stop().await;
}

// ---- 3. the way of an event ----

#[tokio::test(flavor = "multi_thread")]
async fn event_is_read_as_it_was_appended_and_seen_by_a_tail_that_resumes() {
    let served = start(Serve::default()).await;
    let data = r#"{"z": 1.10, "a": 12345678901234567890123}"#;
    let line = format!("{{\"subject\":\"orders.1.placed\",\"data\":{data}}}\n");
    let ndjson = served
        .request(Method::POST, "/v1/events")
        .header("content-type", "application/x-ndjson")
        .body(line);
    let appended: api::Appended = ndjson
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("an answer in JSON");
    assert_eq!(appended.sequences, [1]);
    let page = served.get("/v1/events").await.text().await.expect("a page");
    assert!(page.contains(&format!("\"data\":{data}")), "{page}");
    served.append("orders.2.paid", json!(2)).await;
    served.append("other", json!(3)).await;

    let mut tail = served.get("/v1/events/tail?after=0&subject=orders.>").await;
    assert_eq!(tail.headers()["content-type"], "text/event-stream");
    let text = read_until(&mut tail, "orders.2.paid").await;
    assert!(
        text.contains("event: event\nid: 1\ndata: {\"sequence\":1,") && !text.contains("\"other\""),
        "{text}"
    );
    served.append("orders.3.paid", json!(4)).await;
    read_until(&mut tail, "id: 4\n").await;

    let resumed = served
        .request(Method::GET, "/v1/events/tail?after=0")
        .header("last-event-id", "3")
        .send()
        .await;
    let text = read_until(&mut resumed.expect("an answer"), "id: 4\n").await;
    assert!(!text.contains("id: 1\n"), "{text}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn append_that_expects_something_else_is_a_conflict() {
    let served = start(Serve::default()).await;
    served.append("a", json!(1)).await;
    let body = json!({ "events": [{ "subject": "a" }], "expected_last_sequence": 7 });
    let answer = served
        .request(Method::POST, "/v1/events")
        .json(&body)
        .send()
        .await
        .expect("an answer");
    problem(answer, 409, "conflict").await;
    let invalid = json!({ "events": [{ "subject": "a.*" }] });
    let answer = served
        .request(Method::POST, "/v1/events")
        .json(&invalid)
        .send()
        .await
        .expect("an answer");
    problem(answer, 400, "invalid").await;
    served.stop().await;
}

// ---- 4. the beginning and the end ----

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_before_the_host_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Arc::new(config(&folder, Serve::default()));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let shutdown = CancellationToken::new();
    let entrance =
        Entrance::new(&listener, Arc::clone(&config), shutdown.clone()).expect("it is on loopback");
    let server = tokio::spawn(entrance.clone().serve(listener));
    let client = client().build().expect("a client");
    let get = async |path: &str| {
        client
            .get(format!("http://{address}{path}"))
            .timeout(DEADLINE)
            .send()
            .await
            .expect("it is answered")
    };
    let probe = async |path: &str| {
        let answer = get(path).await;
        let status = answer.status().as_u16();
        let probe: api::Probe = answer.json().await.expect("a probe");
        assert_eq!(probe.ok, status == 200, "{path}: {probe:?}");
        assert_eq!(probe.ok, probe.reasons.is_empty(), "{path}: {probe:?}");
        status
    };
    assert_eq!(
        (
            probe("/livez").await,
            probe("/readyz").await,
            probe("/startupz").await
        ),
        (200, 503, 503)
    );
    let early = get("/v1/deployments").await;
    assert!(early.headers().contains_key("retry-after"));
    problem(early, 503, "not-ready").await;
    let host = Host::start(config).await.expect("the host starts");
    entrance.open(host.clone());
    assert_eq!(
        (
            probe("/livez").await,
            probe("/readyz").await,
            probe("/startupz").await
        ),
        (200, 200, 200)
    );
    assert_eq!(get("/v1/deployments").await.status(), StatusCode::OK);
    host.stop().await;
    assert_eq!(
        (
            probe("/livez").await,
            probe("/readyz").await,
            probe("/startupz").await
        ),
        (200, 503, 200)
    );
    shutdown.cancel();
    server.await.expect("no panic").expect("no error");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_streams_and_lets_no_one_in() {
    let served = start(Serve::default()).await;
    let mut tail = served.get("/v1/events/tail").await;
    read_until(&mut tail, "event: position").await;
    let (client, url) = (
        served.client.clone(),
        format!("http://{}/livez", served.address),
    );
    served.stop().await;
    let rest = tokio::time::timeout(DEADLINE, tail.bytes_stream().collect::<Vec<_>>()).await;
    assert!(
        rest.expect("the stream ends").iter().all(Result::is_ok),
        "it ends cleanly"
    );
    assert!(client.get(url).timeout(DEADLINE).send().await.is_err());
}
