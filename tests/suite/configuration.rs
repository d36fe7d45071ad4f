//! Mistakes in the configuration, one by one: the host refuses each before it does anything, and
//! says what to do.

use std::net::TcpListener;
use std::path::PathBuf;

use foldstream_tests::host::{Host, jetstream_source, refused};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::process::Process;
use foldstream_tests::{cli, guests, host, root, wait};

/// What a mistake ends with.
const USAGE: i32 = 2;

/// A file of the suite's own keys and certificates.
fn tls(name: &str) -> String {
    root()
        .join("tests/data/tls")
        .join(name)
        .display()
        .to_string()
}

#[test]
fn each_mistake_is_refused_by_name() {
    for (config, says) in [
        ("data_dri = \"x\"\n", "did you mean `data_dir`"),
        ("[serve]\nlisten = \"nonsense\"\n", "serve.listen"),
        ("[serve]\nlisten_on = \"127.0.0.1:1\"\n", "serve.listen_on"),
        ("[serve]\nwait_max = \"5 parsecs\"\n", "serve.wait_max"),
        ("[serve]\nwait_max = \"2m\"\n", "serve.wait_max"),
        ("[serve]\ntoken = \"\"\n", "serve.token"),
        ("[serve]\ntoken_file = \"/nonexistent\"\n", "/nonexistent"),
        ("[serve]\ntls_cert = \"/nonexistent\"\n", "serve.tls"),
        ("[serve]\nbody_bytes_max = -1\n", "serve.body_bytes_max"),
        ("[serve]\nqueries_max = 0\n", "serve.queries_max"),
        (
            "[modules]\nmemory_bytes = \"2GiB\"\n",
            "modules.memory_bytes_max",
        ),
        ("[modules]\ndeadline = \"0s\"\n", "modules.deadline"),
        ("[state]\nflush_interval = \"0s\"\n", "state.flush_interval"),
        (
            "[state]\nmemtable_bytes = \"1 elephant\"\n",
            "state.memtable_bytes",
        ),
        ("[pipeline]\nattempts = 0\n", "pipeline.attempts"),
        (
            "[pipeline]\nbatch_events = \"many\"\n",
            "pipeline.batch_events",
        ),
        ("[limits]\ndeployments = 0\n", "limits.deployments"),
        ("[log]\nlevel = \"foldstream=shout\"\n", "log.level"),
        ("[log]\nformat = \"xml\"\n", "log.format"),
        ("[sources.a]\nkind = \"kafka\"\n", "kafka"),
        ("[sources.a]\nstream = \"A\"\n", "kind"),
        ("[sources.a]\nkind = \"jetstream\"\n", "sources.a.stream"),
        (
            "[sources.a]\nkind = \"jetstream\"\nstream = \"A\"\nuser = \"u\"\n",
            "sources.a.password",
        ),
        (
            "[sources.a]\nkind = \"jetstream\"\nstream = \"A\"\ncreds = \"/nonexistent\"\n",
            "/nonexistent",
        ),
        (
            "[sources.a]\nkind = \"embedded\"\nmax_bytes = 0\n",
            "sources.a.max_bytes",
        ),
        ("data_dir = \"/dev/null\"\n", "/dev/null"),
        ("[serve\n", "not valid TOML"),
    ] {
        let (code, output) = refused(config, &[]);
        assert_eq!(code, USAGE, "{config}{output}");
        assert!(
            output.contains(says),
            "{config}says nothing of {says}: {output}"
        );
        assert!(!output.contains("panicked"), "{output}");
    }
}

#[test]
fn what_the_check_finds_sound_a_host_does_not_refuse() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").expect("our folder can be written");
    let key = tls("server.key");
    for (config, says) in [
        (
            format!("[serve]\ntls_cert = {empty:?}\ntls_key = {key:?}\n"),
            "serve.tls_cert",
        ),
        (
            format!(
                "[serve]\ntls_cert = {:?}\ntls_key = {empty:?}\n",
                tls("server.pem")
            ),
            "serve.tls_key",
        ),
        (
            format!("[serve]\ntoken_file = {empty:?}\n"),
            "serve.token_file",
        ),
        (
            "[sources.a]\nkind = \"jetstream\"\nstream = \"A\"\nservers = [\"ws://127.0.0.1:1\"]\n"
                .to_owned(),
            "ws://127.0.0.1:1",
        ),
        (
            format!("[sources.a]\nkind = \"jetstream\"\nstream = \"A\"\ncreds = {empty:?}\n"),
            "sources.a",
        ),
    ] {
        let file = folder.path().join("foldstream.toml");
        std::fs::write(&file, &config).expect("our folder can be written");
        let check = cli::finish(
            host::foldstream()
                .args(["config", "check", "--config"])
                .arg(&file),
            None,
        );
        assert_eq!(
            check.code, USAGE,
            "{config}{}{}",
            check.stdout, check.stderr
        );
        assert!(
            check.stdout.contains(says),
            "{config}says nothing of {says}: {}",
            check.stdout
        );
        let (code, output) = refused(&config, &[]);
        assert!(
            code == USAGE && !output.contains("listening on"),
            "{config}{code}: {output}"
        );
    }
}

#[test]
fn beyond_loopback_nobody_is_served_without_tls_and_token_or_consent() {
    let open = ["--listen", "0.0.0.0:0"];
    let (code, output) = refused("", &open);
    assert!(
        code == USAGE && output.contains("TLS") && output.contains("token"),
        "{code}: {output}"
    );
    let (code, output) = refused("[serve]\ntoken = \"0123456789abcdef\"\n", &open);
    assert!(code == USAGE && output.contains("TLS"), "{code}: {output}");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = host::foldstream();
    command
        .args(["serve", "--listen", "0.0.0.0:0", "--insecure"])
        .current_dir(folder.path());
    let mut process = Process::start("foldstream serve", &mut command);
    let begin = std::time::Instant::now();
    while process.printed("listening on ").is_none() {
        assert!(
            process.ended().is_none() && begin.elapsed() < wait::DEADLINE,
            "{}",
            process.output()
        );
        std::thread::yield_now();
    }
    assert!(
        process.output().contains("insecure"),
        "it warns: {}",
        process.output()
    );
}

#[tokio::test]
async fn with_tls_and_token_beyond_loopback_it_serves() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let config = format!(
        "[serve]\ntoken = \"0123456789abcdef\"\ntls_cert = {:?}\ntls_key = {:?}\n",
        tls("server.pem"),
        tls("server.key")
    );
    let file = folder.path().join("foldstream.toml");
    std::fs::write(&file, config).expect("our folder can be written");
    let mut command = host::foldstream();
    command
        .args(["serve", "--listen", "0.0.0.0:0", "--config"])
        .arg(&file)
        .current_dir(folder.path());
    let process = Process::start("foldstream serve", &mut command);
    let url = wait::until("the host to listen", || async {
        process.printed("listening on ")
    })
    .await;
    let url = url.replace("0.0.0.0", "127.0.0.1");
    assert!(url.starts_with("https://"), "{url}");
    let ask = |token: &str| {
        let ca = tls("ca.pem");
        cli::run(&[
            "--url", &url, "--ca", &ca, "--token", token, "list", "-o", "json",
        ])
    };
    assert_eq!(
        ask("0123456789abcdef").expect(0).json(),
        serde_json::json!({ "deployments": [] })
    );
    ask("another-token-of-length").expect(4);
    let foreign = tls("client.key");
    let output = cli::run(&[
        "--url",
        &url,
        "--ca",
        &foreign,
        "--token",
        "0123456789abcdef",
        "list",
    ]);
    assert_eq!(
        output.code, 2,
        "a file that is no certificate: {}",
        output.stderr
    );
}

#[test]
fn a_port_in_use_is_said_so() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it has one").to_string();
    let (code, output) = refused("", &["--listen", &address]);
    assert!(
        code == 1 && output.contains(&address) && output.contains("--listen"),
        "{code}: {output}"
    );
}

#[tokio::test]
async fn a_second_host_on_one_data_folder_is_refused() {
    let host = Host::start().await;
    // As of a fold that the first one is at.
    let scratch = host.data_dir().join("scratch/7.redb");
    std::fs::write(&scratch, "state").expect("written");
    let (code, output) = refused(&format!("data_dir = {:?}\n", host.data_dir()), &[]);
    assert_eq!(code, 4, "{output}");
    assert!(
        output.contains("another foldstream uses it") && output.contains("data folder"),
        "{output}"
    );
    assert!(scratch.exists(), "it is refused before it tidies up");
    host.client().get("/livez").await.expect(200);
}

#[tokio::test]
async fn environment_and_flags_win_over_the_file_in_this_order() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("foldstream.toml");
    std::fs::write(
        &file,
        "[pipeline]\nattempts = 2\nbatch_events = 22\n[limits]\ndeployments = 222\n",
    )
    .expect("written");
    let mut command = host::foldstream();
    command
        .args([
            "config",
            "show",
            "-o",
            "json",
            "--set",
            "limits.deployments=444",
            "--config",
        ])
        .arg(&file)
        .env("FOLDSTREAM_PIPELINE__BATCH_EVENTS", "33")
        .env("FOLDSTREAM_LIMITS__DEPLOYMENTS", "333");
    let shown = cli::finish(&mut command, None).expect(0).json();
    assert_eq!(shown["pipeline"]["attempts"], 2);
    assert_eq!(shown["pipeline"]["batch_events"], 33);
    assert_eq!(shown["limits"]["deployments"], 444);
}

/// A host on a server that asks for something, and reads one event from it.
async fn reads_with(server: &NatsServer, settings: &str, context: &async_nats::jetstream::Context) {
    nats::create_stream(context, "ORDERS", "orders.>").await;
    let order = bytes::Bytes::from(r#"{"order":"o-1","amount":5}"#);
    nats::publish(context, [("orders.1.placed".to_owned(), order)]).await;
    let host = Host::start_with(&format!(
        "{}{settings}",
        jetstream_source(&server.url(), "ORDERS")
    ))
    .await;
    host.client()
        .deploy("ledger", &guests::module("ledger"))
        .await;
    host.client().reached("ledger", 1).await;
}

async fn context(
    options: async_nats::ConnectOptions,
    server: &NatsServer,
) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(
        options
            .connect(server.url())
            .await
            .expect("these are the right credentials"),
    )
}

#[tokio::test]
async fn a_server_that_wants_user_and_password_lets_us_in_with_them() {
    let server = NatsServer::start_with("authorization { user: fold, password: stream }").await;
    let options =
        async_nats::ConnectOptions::with_user_and_password("fold".to_owned(), "stream".to_owned());
    let context = context(options, &server).await;
    reads_with(
        &server,
        "user = \"fold\"\npassword = \"stream\"\n",
        &context,
    )
    .await;
}

#[tokio::test]
async fn a_server_that_wants_a_token_lets_us_in_with_it() {
    let server = NatsServer::start_with("authorization { token: \"a-token\" }").await;
    let context = context(
        async_nats::ConnectOptions::with_token("a-token".to_owned()),
        &server,
    )
    .await;
    reads_with(&server, "token = \"a-token\"\n", &context).await;
}

#[tokio::test]
async fn a_server_that_wants_certificates_lets_us_in_with_ours() {
    let [ca, cert, key] = ["ca.pem", "server.pem", "server.key"].map(tls);
    let server = NatsServer::start_with(&format!(
        "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}"
    ))
    .await;
    let [client_cert, client_key] = ["client.pem", "client.key"].map(tls);
    let options = async_nats::ConnectOptions::new()
        .add_root_certificates(PathBuf::from(&ca))
        .add_client_certificate(PathBuf::from(&client_cert), PathBuf::from(&client_key));
    let context = context(options, &server).await;
    let settings = format!(
        "tls_ca = {ca:?}\ntls_cert = {client_cert:?}\ntls_key = {client_key:?}\ntls_required = \
         true\n"
    );
    reads_with(&server, &settings, &context).await;
}
