//! Each way to reach a server and to prove who we are.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nats::ConnectOptions;
use base64::Engine;
use foldstream::api::SourceState;
use foldstream::source::jetstream::{JetStream, Options};
use nkeys::KeyPair;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::reading::{Reading, numbers, options, request};
use crate::server::{Server, numbered, orders, publish, until};

/// Puts three events into the stream, as somebody who may.
async fn fill(server: &Server, administrator: ConnectOptions) {
    let jetstream = server.jetstream_as(administrator).await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..3)).await;
}

/// Reads the three events.
async fn reads(options: Options) {
    let mut reading = Reading::begin(options, request(&[">"]));
    assert_eq!(numbers(&reading.events(3).await.0), [0, 1, 2]);
}

fn administrator() -> ConnectOptions {
    ConnectOptions::with_user_and_password("admin".to_owned(), "secret".to_owned())
}

/// The message with which settings are refused.
fn refusal(options: Options) -> String {
    JetStream::new(options)
        .expect_err("the settings are unusable")
        .to_string()
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[tokio::test]
async fn user_and_password_are_presented() {
    let server = Server::start_with("authorization { user: admin, password: secret }").await;
    fill(&server, administrator()).await;
    let named = Options {
        user: text("admin"),
        password: text("secret"),
        ..options(&server)
    };
    reads(named.clone()).await;
    reads(Options {
        servers: vec![server.url().replace("//", "//admin:secret@")],
        ..options(&server)
    })
    .await;

    let mut wrong = Reading::begin(
        Options {
            password: text("wrong"),
            ..named
        },
        request(&[">"]),
    );
    let message = wrong.state(SourceState::Unauthorized).await;
    assert!(
        message.to_lowercase().contains("authorization violation"),
        "{message}"
    );
    assert!(!message.contains("wrong"), "a secret is shown: {message}");
}

#[tokio::test]
async fn token_is_presented() {
    let server = Server::start_with("authorization { token: t0ken }").await;
    fill(&server, ConnectOptions::with_token("t0ken".to_owned())).await;
    reads(Options {
        token: text("t0ken"),
        ..options(&server)
    })
    .await;
    reads(Options {
        servers: vec![server.url().replace("//", "//t0ken@")],
        ..options(&server)
    })
    .await;
}

#[tokio::test]
async fn replaced_key_file_is_read_again() {
    let (right, wrong) = (KeyPair::new_user(), KeyPair::new_user());
    let server = Server::start_with(&format!(
        "authorization {{ users = [ {{ user: admin, password: secret }}, {{ nkey: {} }} ] }}",
        right.public_key()
    ))
    .await;
    fill(&server, administrator()).await;
    let seed = |pair: &KeyPair| pair.seed().expect("the pair is whole");
    let nkey = server.write("user.nk", &seed(&wrong));

    let mut reading = Reading::begin(
        Options {
            nkey: Some(nkey),
            ..options(&server)
        },
        request(&[">"]),
    );
    reading.state(SourceState::Unauthorized).await;
    server.write("user.nk", &format!("{}\n", seed(&right)));
    assert_eq!(numbers(&reading.events(3).await.0), [0, 1, 2]);
}

#[tokio::test]
async fn replaced_password_and_token_files_are_read_again() {
    let ways = [
        (
            "authorization { user: admin, password: secret }",
            administrator(),
        ),
        (
            "authorization { token: secret }",
            ConnectOptions::with_token("secret".to_owned()),
        ),
    ];
    for (configuration, filler) in ways {
        let mut server = Server::start_with(configuration).await;
        fill(&server, filler).await;
        let file = Some(server.write("secret", "secret\n"));
        // What the configuration read at the start.
        let read = text("secret");
        let options = if configuration.contains("user") {
            Options {
                user: text("admin"),
                password: read,
                password_file: file,
                ..options(&server)
            }
        } else {
            Options {
                token: read,
                token_file: file,
                ..options(&server)
            }
        };
        let mut reading = Reading::begin(options, request(&[">"]));
        reading.events(3).await;

        server.kill();
        server.configure(&configuration.replace("secret", "an0ther"));
        server.run().await;
        reading.state(SourceState::Unauthorized).await;
        server.write("secret", "an0ther\n");
        reading.state(SourceState::Reading).await;
    }
}

/// A JWT of a kind, signed by its issuer.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &serde_json::Value) -> String {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let header = encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let claims = serde_json::json!({
        "jti": "1", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": "test", "nats": nats,
    });
    let signed = format!("{header}.{}", encode(claims.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).expect("the pair is whole");
    format!("{signed}.{}", encode(&signature))
}

/// Configuration of a server with an operator, and a user of its account: JWT and seed.
fn operator_mode() -> (String, String, String) {
    let (operator, account, system, user) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    );
    let limits = serde_json::json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let mut plain = limits.clone();
    for name in ["mem_storage", "disk_storage", "streams", "consumer"] {
        plain[name] = 0.into();
    }
    let operator_jwt = jwt(
        &operator,
        &operator,
        &serde_json::json!({ "type": "operator", "version": 2 }),
    );
    let account_jwt = jwt(
        &operator,
        &account,
        &serde_json::json!({ "type": "account", "version": 2, "limits": limits }),
    );
    let system_jwt = jwt(
        &operator,
        &system,
        &serde_json::json!({ "type": "account", "version": 2, "limits": plain }),
    );
    let user_claims =
        serde_json::json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let user_jwt = jwt(&account, &user, &user_claims);
    let configuration = format!(
        "operator: {operator_jwt}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: \
         {account_jwt}, {}: {system_jwt} }}",
        system.public_key(),
        account.public_key(),
        system.public_key(),
    );
    (
        configuration,
        user_jwt,
        user.seed().expect("the pair is whole"),
    )
}

#[tokio::test]
async fn credentials_file_and_jwt_with_nkey_are_presented() {
    let (configuration, jwt, seed) = operator_mode();
    let server = Server::start_with(&configuration).await;
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER \
         NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    fill(
        &server,
        ConnectOptions::with_credentials(&creds).expect("the credentials are sound"),
    )
    .await;

    reads(Options {
        creds: Some(server.write("user.creds", &creds)),
        ..options(&server)
    })
    .await;
    let (jwt_file, seed_file) = (
        server.write("user.jwt", &jwt),
        server.write("user.nk", &seed),
    );
    reads(Options {
        jwt: Some(jwt_file),
        nkey: Some(seed_file.clone()),
        ..options(&server)
    })
    .await;

    let context = serde_json::json!({ "url": server.url(), "user_jwt": jwt, "nkey": seed_file });
    let context = server.write("edge.json", &context.to_string());
    reads(Options {
        servers: Vec::new(),
        context: text(&context.display().to_string()),
        ..options(&server)
    })
    .await;
}

#[tokio::test]
async fn missing_permission_is_reported_in_the_servers_words() {
    let users = |denied: &str| {
        format!(
            "authorization {{ users = [ {{ user: admin, password: secret }}, {{ user: reader, \
             password: secret, permissions: {{ publish: {{ deny: [\"{denied}\"] }} }} }} ] }}"
        )
    };
    let mut server = Server::start_with(&users("never")).await;
    fill(&server, administrator()).await;
    let reader = Options {
        user: text("reader"),
        password: text("secret"),
        ..options(&server)
    };
    for denied in [
        "$JS.API.STREAM.INFO.>",
        "$JS.API.STREAM.MSG.GET.>",
        "$JS.API.CONSUMER.CREATE.>",
        "$JS.API.CONSUMER.MSG.NEXT.>",
    ] {
        server.kill();
        server.configure(&users(denied));
        server.run().await;
        let mut reading = Reading::begin(reader.clone(), request(&[">"]));
        let message = reading.state(SourceState::Unauthorized).await;
        assert!(
            message.contains("Permissions Violation"),
            "{denied}: {message}"
        );

        // Once it is granted, the reader continues on its own.
        server.kill();
        server.configure(&users("never"));
        server.run().await;
        assert_eq!(numbers(&reading.events(3).await.0), [0, 1, 2], "{denied}");
    }
}

#[tokio::test]
async fn least_privilege_with_an_inbox_prefix_is_enough() {
    let server = Server::start_with(
        "authorization { users = [ { user: admin, password: secret }, { user: reader, password: secret, permissions: {
            publish: { allow: [\"$JS.API.STREAM.INFO.ORDERS\", \"$JS.API.CONSUMER.CREATE.ORDERS.>\",
                \"$JS.API.CONSUMER.MSG.NEXT.ORDERS.>\", \"$JS.API.STREAM.MSG.GET.ORDERS\"] }
            subscribe: { allow: [\"_FOLD.>\"] } } } ] }",
    )
    .await;
    fill(&server, administrator()).await;
    let reader = Options {
        user: text("reader"),
        password: text("secret"),
        ..options(&server)
    };
    let granted = Options {
        inbox_prefix: text("_FOLD"),
        ..reader.clone()
    };
    let mut first = Reading::begin(granted.clone(), request(&[">"]));
    let (_, last) = first.events(3).await;
    // Resuming looks at the last event too.
    let resume = Some(crate::reading::checkpoint(&last));
    let mut resumed = Reading::begin(
        granted,
        foldstream::source::Request {
            resume,
            ..request(&[">"])
        },
    );
    assert_eq!(
        resumed
            .next()
            .await
            .expect("the history is the same")
            .through,
        3
    );

    let mut refused = Reading::begin(reader, request(&[">"]));
    let message = refused.state(SourceState::Unauthorized).await;
    assert!(message.contains("_INBOX"), "{message}");
}

#[tokio::test]
async fn domain_and_api_prefix_lead_to_their_jetstream() {
    let server =
        Server::start_with("jetstream { store_dir: \"$FOLDER/store\", domain: edge }").await;
    fill(&server, ConnectOptions::new()).await;
    reads(Options {
        domain: text("edge"),
        ..options(&server)
    })
    .await;
    reads(Options {
        api_prefix: text("$JS.edge.API"),
        ..options(&server)
    })
    .await;

    let mut lost = Reading::begin(
        Options {
            domain: text("hub"),
            ..options(&server)
        },
        request(&[">"]),
    );
    let message = lost.state(SourceState::Reconnecting).await;
    assert!(message.contains("no JetStream at $JS.hub.API"), "{message}");
}

/// An authority, and certificates of it for a server and a client.
struct Certificates {
    authority: PathBuf,
    client: PathBuf,
    client_key: PathBuf,
}

/// Writes certificates next to the configuration of a server.
fn certify(server: &Server) -> Certificates {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = parameters.self_signed(&key).expect("a certificate");
    let issuer = rcgen::Issuer::new(parameters, key);
    let issue = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let parameters =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]);
        let certificate = parameters
            .expect("parameters")
            .signed_by(&key, &issuer)
            .expect("a certificate");
        let path = server.write(&format!("{name}.pem"), &certificate.pem());
        (
            path,
            server.write(&format!("{name}.key"), &key.serialize_pem()),
        )
    };
    issue("server");
    let (client, client_key) = issue("client");
    Certificates {
        authority: server.write("ca.pem", &authority.pem()),
        client,
        client_key,
    }
}

const TLS: &str = "tls { cert_file: \"$FOLDER/server.pem\", key_file: \"$FOLDER/server.key\"";

#[tokio::test]
async fn tls_is_spoken_and_the_server_is_verified() {
    let mut server = Server::prepare("");
    let files = certify(&server);
    server.configure(&format!("{TLS} }}"));
    server.run().await;
    let trusting = || ConnectOptions::new().add_root_certificates(files.authority.clone());
    drop(rustls::crypto::ring::default_provider().install_default());
    fill(&server, trusting()).await;
    let tls = Options {
        tls_ca: Some(files.authority.clone()),
        ..options(&server)
    };
    reads(tls.clone()).await;
    let named = vec![format!("tls://localhost:{}", server.port())];
    reads(Options {
        servers: named,
        ..tls.clone()
    })
    .await;

    let other = Server::prepare("");
    let stranger = Options {
        tls_ca: Some(certify(&other).authority),
        ..options(&server)
    };
    let mut distrusting = Reading::begin(stranger, request(&[">"]));
    let refused = distrusting
        .status
        .wait_for(|status| status.message.is_some());
    let message = crate::server::within("the reader tells of its trouble", async {
        tokio::select! {
            status = refused => status.expect("the reader lives").message.clone().unwrap_or_default(),
            batch = distrusting.reader.next() => panic!("the server is not to be trusted: {batch:?}"),
        }
    })
    .await;
    assert!(message.contains("certificate"), "{message}");
}

#[tokio::test]
async fn certificate_that_changed_is_reported_and_its_new_authority_is_read() {
    let mut server = Server::prepare("");
    let authority = certify(&server).authority;
    server.configure(&format!("{TLS} }}"));
    server.run().await;
    drop(rustls::crypto::ring::default_provider().install_default());
    fill(
        &server,
        ConnectOptions::new().add_root_certificates(authority.clone()),
    )
    .await;
    // The reader's own copy, as it is on another machine.
    let trusted = server.write(
        "trusted.pem",
        &std::fs::read_to_string(&authority).expect("it was written"),
    );
    let mut reading = Reading::begin(
        Options {
            tls_ca: Some(trusted.clone()),
            ..options(&server)
        },
        request(&[">"]),
    );
    reading.events(3).await;

    server.kill();
    certify(&server);
    server.run().await;
    let mut status = reading.status.clone();
    let told = status.wait_for(|status| {
        let message = status.message.as_deref().unwrap_or_default();
        status.state == SourceState::Reconnecting && message.contains("invalid peer certificate")
    });
    crate::server::within("the reader tells what is wrong with the certificate", async {
        tokio::select! {
            told = told => drop(told.expect("the reader lives")),
            batch = async { loop { reading.reader.next().await.expect("the reader continues"); } } => batch,
        }
    })
    .await;

    std::fs::copy(&authority, &trusted).expect("the folder is writable");
    reading.state(SourceState::Reading).await;
}

#[tokio::test]
async fn clear_text_is_refused_where_tls_is_required() {
    let server = Server::start().await;
    fill(&server, ConnectOptions::new()).await;
    let mut reading = Reading::begin(
        Options {
            tls_required: true,
            ..options(&server)
        },
        request(&[">"]),
    );
    let refused = reading.status.wait_for(|status| status.message.is_some());
    crate::server::within("the reader tells of its trouble", async {
        tokio::select! {
            status = refused => assert_eq!(status.expect("the reader lives").state, SourceState::Connecting),
            batch = reading.reader.next() => panic!("read in clear text: {batch:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn client_certificate_and_early_tls_are_presented() {
    let mut server = Server::prepare("");
    let files = certify(&server);
    server.configure(&format!(
        "{TLS}, ca_file: \"$FOLDER/ca.pem\", verify: true, handshake_first: true }}"
    ));
    server.run().await;
    drop(rustls::crypto::ring::default_provider().install_default());
    let administrator = ConnectOptions::new()
        .add_root_certificates(files.authority.clone())
        .add_client_certificate(files.client.clone(), files.client_key.clone())
        .tls_first();
    fill(&server, administrator).await;
    let own = Options {
        tls_ca: Some(files.authority.clone()),
        tls_cert: Some(files.client.clone()),
        tls_key: Some(files.client_key.clone()),
        tls_first: true,
        ..options(&server)
    };
    reads(own).await;
    let context = serde_json::json!({
        "url": server.url(), "ca": files.authority, "cert": files.client, "key": files.client_key, "tls_first": true,
    });
    let context = server.write("tls.json", &context.to_string());
    reads(Options {
        servers: Vec::new(),
        context: text(&context.display().to_string()),
        ..options(&server)
    })
    .await;
}

#[tokio::test]
async fn context_fills_in_what_is_not_set() {
    let server = Server::start_with("authorization { user: admin, password: secret }").await;
    fill(&server, administrator()).await;
    let context = serde_json::json!({ "url": server.url(), "user": "admin", "password": "secret" });
    let context = server
        .write("good.json", &context.to_string())
        .display()
        .to_string();
    reads(Options {
        servers: Vec::new(),
        context: text(&context),
        ..options(&server)
    })
    .await;

    let context =
        serde_json::json!({ "url": "nats://127.0.0.1:1", "user": "admin", "password": "old" });
    let context = server
        .write("stale.json", &context.to_string())
        .display()
        .to_string();
    let own = Options {
        user: text("admin"),
        password: text("secret"),
        context: text(&context),
        ..options(&server)
    };
    reads(own).await;
}

#[test]
fn unusable_settings_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("folder is writable");
        Some(path)
    };
    let base = || Options {
        name: "orders".to_owned(),
        stream: "ORDERS".to_owned(),
        ..Options::default()
    };
    let absent = || Some(folder.path().join("absent"));
    let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    let refused = |expected: &str, change: &dyn Fn(&mut Options)| {
        let mut options = base();
        change(&mut options);
        let message = refusal(options);
        assert!(
            message.contains("source orders: ") && message.contains(expected),
            "{expected}: {message}"
        );
        assert!(!message.contains("pass word"), "{message}");
    };

    refused("nats stream ls", &|it| it.stream = String::new());
    refused("nats stream ls", &|it| it.stream = "a.b".to_owned());
    let at = |address: &str| vec![address.to_owned()];
    refused("write it like", &|it| it.servers = at("http://x"));
    refused("WebSockets", &|it| it.servers = at("ws://x"));
    refused("write it like", &|it| it.servers = at("nats://:pass word@"));

    refused("without `password`", &|it| it.user = text("u"));
    refused("without `user`", &|it| it.password = text("p"));
    refused("keep one", &|it| {
        (it.token, it.user, it.password) = (text("t"), text("u"), text("p"));
    });
    refused("keep one", &|it| {
        (it.token, it.creds) = (text("t"), file("x.creds", ""));
    });
    refused("without `nkey`", &|it| it.jwt = file("x.jwt", "e30"));
    refused("cannot read `creds`", &|it| it.creds = absent());
    refused("not a credentials file", &|it| {
        it.creds = file("y.creds", "nothing");
    });
    refused("nk -gen user", &|it| it.nkey = file("x.nk", "SUNOTASEED"));

    refused("`tls_ca`", &|it| it.tls_ca = absent());
    refused("no certificate", &|it| it.tls_ca = file("ca.pem", "none"));
    refused("without `tls_key`", &|it| it.tls_cert = file("c.pem", "x"));
    refused("without `tls_cert`", &|it| it.tls_key = file("k.pem", &key));

    refused("keep one", &|it| {
        (it.domain, it.api_prefix) = (text("hub"), text("$JS.hub.API"));
    });
    refused("not a JetStream domain", &|it| it.domain = text("a.b"));
    refused("`api_prefix` is not valid", &|it| {
        it.api_prefix = text("a b");
    });
    refused("`inbox_prefix` is not valid", &|it| {
        it.inbox_prefix = text("_IN.>");
    });
    refused("nats context ls", &|it| {
        it.context = text("/nowhere/context.json");
    });

    let secret = Options {
        password: text("hidden"),
        token: text("hidden"),
        ..base()
    };
    assert!(!format!("{secret:?}").contains("hidden"));
}

/// Counts the connections that somebody makes to a listener, each of which is closed at once.
fn counted(listener: TcpListener) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

/// A proxy before a server that advertises another member of its cluster; its address, and
/// how many connections it was asked for.
async fn advertising(server: SocketAddr, other: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(pass_on(client, server, other));
        }
    });
    (address, count)
}

async fn pass_on(
    mut client: TcpStream,
    server: SocketAddr,
    other: SocketAddr,
) -> std::io::Result<()> {
    let mut server = BufReader::new(TcpStream::connect(server).await?);
    let mut first = String::new();
    server.read_line(&mut first).await?;
    let first = first.replacen(
        "INFO {",
        &format!("INFO {{\"connect_urls\":[\"{other}\"],"),
        1,
    );
    client.write_all(first.as_bytes()).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server)
        .await
        .map(drop)
}

#[tokio::test]
async fn servers_that_a_server_advertises_are_left_alone_if_that_is_set() {
    for ignores in [true, false] {
        let mut server = Server::start().await;
        fill(&server, ConnectOptions::new()).await;
        let other = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let (before, asked) = advertising(address, other.local_addr().expect("an address")).await;
        let other = counted(other);
        let servers = vec![format!("nats://{before}")];
        let settings = Options {
            ignore_discovered_servers: ignores,
            servers,
            ..options(&server)
        };
        let mut reading = Reading::begin(settings, request(&[">"]));
        assert_eq!(numbers(&reading.events(3).await.0), [0, 1, 2]);
        let at = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let before_loss = at(&asked);
        server.kill();
        until("several attempts", async || {
            (at(&asked) >= before_loss + 4).then_some(())
        })
        .await;
        if ignores {
            assert_eq!(at(&other), 0, "it connected to where the server sent it");
        } else {
            until("an attempt at the other server", async || {
                (at(&other) > 0).then_some(())
            })
            .await;
        }
    }
}
