//! A host without configured tokens: the token that it makes, who finds it, and what is open
//! without one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use foldstream_tests::client::Client;
use foldstream_tests::host::foldstream;
use foldstream_tests::process::Process;
use foldstream_tests::{cli, guests, wait};
use reqwest::Method;
use rustix::process::Signal;
use tempfile::TempDir;

/// A host as somebody starts it who has read nothing.
struct Bare {
    folder: TempDir,
    process: Process,
    client: Client,
}

impl Bare {
    async fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let process = Self::serve(&folder, settings);
        let client = Client::new(&listening(&process).await);
        Self {
            folder,
            process,
            client,
        }
    }

    fn serve(folder: &TempDir, settings: &str) -> Process {
        let file = folder.path().join("foldstream.toml");
        let text = format!(
            "data_dir = {:?}\n[serve]\nlisten = \"127.0.0.1:0\"\n{settings}",
            folder.path().join("data")
        );
        std::fs::write(&file, text).expect("our folder can be written");
        Process::start(
            "foldstream serve",
            foldstream().arg("serve").arg("--config").arg(file),
        )
    }

    /// Kills it and starts it again on the same files.
    async fn restart(&mut self, settings: &str) {
        self.process.kill();
        self.process = Self::serve(&self.folder, settings);
        self.client = Client::new(&listening(&self.process).await);
    }

    fn token_file(&self) -> PathBuf {
        self.folder.path().join("data/token")
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.token_file())
            .expect("there is one")
            .trim()
            .to_owned()
    }

    fn run(&self, arguments: &[&str]) -> cli::Output {
        cli::run(&[&["--url", self.client.url()], arguments].concat())
    }

    async fn append(&self, client: &Client) -> foldstream_tests::client::Answer {
        let events =
            r#"{"events":[{"subject":"orders.1.placed","data":{"order":"a","amount":1}}]}"#;
        client.post("/v1/events", "application/json", events).await
    }
}

async fn listening(process: &Process) -> String {
    wait::until("the host to listen", || async {
        process.printed("listening on ")
    })
    .await
}

/// The program as another user of the machine runs it: none of the folders of the first are theirs.
fn as_another_user(home: &Path) -> Command {
    let mut command = foldstream();
    command
        .env("HOME", home)
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("XDG_STATE_HOME");
    command
}

#[tokio::test]
async fn a_first_start_makes_a_token_that_commands_of_its_user_find() {
    let mut host = Bare::start("").await;
    let module = guests::path("ledger").display().to_string();

    // Reading takes no token, changing does.
    host.client.get("/v1/deployments").await.expect(200);
    host.client.get("/metrics").await.expect(200);
    let said = host
        .append(&host.client)
        .await
        .problem(401, "unauthorized")
        .detail;
    assert!(
        said.contains("Bearer") && said.contains("data folder"),
        "{said}"
    );
    host.client
        .upload(guests::module("ledger"), "")
        .await
        .problem(401, "unauthorized");
    host.run(&["deploy", &module, "--wait", "--timeout", "60s"])
        .expect(0);
    host.run(&[
        "events",
        "append",
        "orders.1.placed",
        r#"{"order":"b","amount":1}"#,
    ])
    .expect(0);
    let named = host.client.url().replace("127.0.0.1", "localhost");
    cli::run(&["--url", &named, "pause", "ledger"]).expect(0);
    for action in ["pause", "resume", "rollback", "rebuild"] {
        host.client
            .act("ledger", action)
            .await
            .problem(401, "unauthorized");
    }
    let delete = host
        .client
        .request(Method::DELETE, "/v1/deployments/ledger");
    host.client.send(delete).await.problem(401, "unauthorized");

    let mode = std::fs::metadata(host.token_file())
        .expect("it was made")
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o600);
    let token = host.token();
    assert_eq!(host.run(&["token", "show"]).expect(0).stdout.trim(), token);
    let owner = host.client.clone().with_token(&token);
    host.append(&owner).await.expect(200);
    assert!(
        !host.process.output().contains(&token),
        "no log has it: {}",
        host.process.output()
    );

    // The token stays over a crash, and a note that a killed host left leads nobody anywhere.
    let before = host.client.url().to_owned();
    host.restart("").await;
    assert_eq!(host.token(), token);
    cli::run(&["--url", &before, "token", "show"]).expect(3);
    host.run(&["resume", "ledger"]).expect(0);
}

#[tokio::test]
async fn other_users_find_no_token_and_learn_what_to_do() {
    let host = Bare::start("").await;
    let home = tempfile::tempdir().expect("a temporary folder");
    let append = |more: &[&str]| {
        let mut command = as_another_user(home.path());
        command
            .args([
                "--url",
                host.client.url(),
                "events",
                "append",
                "orders.1.placed",
            ])
            .args(more);
        cli::finish(&mut command, None)
    };
    let refused = append(&[]).expect(4);
    assert!(
        refused.stderr.contains("--token") && refused.stderr.contains("data folder"),
        "{}",
        refused.stderr
    );
    append(&["--token-file", &host.token_file().display().to_string()]).expect(0);
}

#[tokio::test]
async fn a_configuration_nearby_leads_to_the_token_of_its_data_folder() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|held| held.local_addr())
        .expect("a port")
        .port();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = format!("data_dir = \"data\"\n[serve]\nlisten = \"127.0.0.1:{port}\"\n");
    std::fs::write(folder.path().join("foldstream.toml"), text).expect("written");
    let home = tempfile::tempdir().expect("a temporary folder");
    // As a service it has no home, and leaves no note anywhere.
    let mut command = as_another_user(home.path());
    command
        .env_remove("HOME")
        .arg("serve")
        .current_dir(folder.path());
    let process = Process::start("foldstream serve", &mut command);
    listening(&process).await;
    let mut command = as_another_user(home.path());
    command
        .args(["events", "append", "orders.1.placed"])
        .current_dir(folder.path());
    cli::finish(&mut command, None).expect(0);
}

#[tokio::test]
async fn a_made_token_is_replaced_by_removing_it() {
    let host = Bare::start("").await;
    let old = host.client.clone().with_token(&host.token());
    host.append(&old).await.expect(200);
    std::fs::remove_file(host.token_file()).expect("it is there");
    host.process.signal(Signal::HUP);
    wait::until("the old token to be withdrawn", || async {
        (host.append(&old).await.status == 401).then_some(())
    })
    .await;
    host.append(&host.client.clone().with_token(&host.token()))
        .await
        .expect(200);
    host.run(&["events", "append", "orders.1.placed"]).expect(0);
}

#[tokio::test]
async fn what_is_open_without_a_token_can_be_chosen() {
    let mut host = Bare::start("anonymous = \"nothing\"\n").await;
    host.client
        .get("/v1/deployments")
        .await
        .problem(401, "unauthorized");
    host.client.get("/livez").await.expect(200);
    host.run(&["list"]).expect(0);

    host.restart("anonymous = \"everything\"\n").await;
    host.append(&host.client).await.expect(200);
    host.run(&["events", "append", "orders.1.placed"]).expect(0);
    cli::run(&["--url", host.client.url(), "token", "show"]).expect(3);

    // A token that is configured leaves the one that was made without effect.
    let made = host.token();
    host.restart("token = \"a-token-that-is-long-enough\"\n")
        .await;
    host.client
        .get("/v1/deployments")
        .await
        .problem(401, "unauthorized");
    host.append(&host.client.clone().with_token(&made))
        .await
        .problem(401, "unauthorized");

    // Both together: everyone may read, and changes take the token.
    host.restart("token = \"a-token-that-is-long-enough\"\nanonymous = \"read\"\n")
        .await;
    host.client.get("/v1/deployments").await.expect(200);
    host.append(&host.client).await.problem(401, "unauthorized");
    host.append(
        &host
            .client
            .clone()
            .with_token("a-token-that-is-long-enough"),
    )
    .await
    .expect(200);
}

#[tokio::test]
async fn pages_and_proxies_may_not_even_read_without_a_token() {
    let host = Bare::start("").await;
    let with = async |name: &str, value: &str, token: Option<&str>| {
        let client = token.map_or(host.client.clone(), |token| {
            host.client.clone().with_token(token)
        });
        client
            .send(
                client
                    .request(Method::GET, "/v1/sources")
                    .header(name, value),
            )
            .await
    };
    let token = host.token();
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("origin", "https://evil.example"),
        ("via", "1.1 proxy"),
    ] {
        with(name, value, None).await.problem(403, "forbidden");
        with(name, value, Some(&token)).await.expect(200);
    }
    with("host", "rebound.example", None)
        .await
        .problem(403, "forbidden");
    with("host", "rebound.example", Some("a-wrong-token-of-length"))
        .await
        .problem(401, "unauthorized");
}

#[test]
fn everything_is_never_open_beyond_loopback_by_a_word() {
    let config = "[serve]\ntoken = \"a-token-that-is-long-enough\"\nanonymous = \"everything\"\n";
    let (code, said) = foldstream_tests::host::refused(config, &["--listen", "0.0.0.0:0"]);
    assert!(
        code == 2 && said.contains("serve.anonymous"),
        "{code}: {said}"
    );
}

#[test]
fn a_file_of_tokens_without_any_is_a_mistake_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, "# to be filled\n").expect("written");
    let (code, said) =
        foldstream_tests::host::refused(&format!("[serve]\ntokens_file = {file:?}\n"), &[]);
    assert!(
        code == 2 && said.contains("has no tokens") && said.contains("token new"),
        "{code}: {said}"
    );
}

#[tokio::test]
async fn a_file_of_tokens_that_is_cut_off_while_it_runs_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens.toml");
    let made = cli::run(&[
        "token", "new", "--name", "all", "--scope", "read", "-o", "json",
    ])
    .expect(0)
    .json();
    let entry = format!(
        "[[tokens]]\nname = \"all\"\nsha256 = {}\nscopes = [\"read\"]\n",
        made["sha256"]
    );
    std::fs::write(&file, &entry).expect("written");
    let host = Bare::start(&format!("tokens_file = {file:?}\n")).await;
    let reader = host
        .client
        .clone()
        .with_token(made["token"].as_str().expect("a token"));
    reader.get("/v1/host").await.expect(200);
    std::fs::write(&file, "").expect("written");
    wait::until("the mistake to be told", || async {
        host.process
            .output()
            .contains("has no tokens")
            .then_some(())
    })
    .await;
    reader.get("/v1/host").await.expect(200);
}

#[tokio::test]
async fn dev_works_where_tokens_are_in_a_file_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write =
        |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("Cargo.toml", "no crate at all");
    write(
        "events.ndjson",
        "{\"subject\":\"orders.1.placed\",\"data\":{}}\n",
    );
    write("tokens.toml", "tokens = []\n");
    let mut command = foldstream();
    command.args([
        "dev",
        "--listen",
        "127.0.0.1:0",
        "--set",
        "serve.tokens_file=tokens.toml",
    ]);
    let dev = Process::start("foldstream dev", command.current_dir(folder.path()));
    wait::until("dev to use its own host", || async {
        dev.output().contains("imported 1 event").then_some(())
    })
    .await;
}
