//! What a process is given: signals at any moment, few descriptors, files without an end, names
//! that are no text.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::nats::free_port;
use foldstream_tests::process::Process;
use foldstream_tests::stage::LEDGER;
use foldstream_tests::{cli, guests, host, wait};
use rustix::fs::OFlags;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Descriptors of a host that has hardly any.
const FEW: u64 = 48;

fn make_pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo runs").success());
}

/// Waits until something is there, without a runtime.
fn wait_for<T>(process: &Process, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < wait::DEADLINE, "{}", process.output());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_host_that_is_still_starting_stops_in_order_if_it_is_asked_to() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("foldstream.toml");
    let data = folder.path().join("data");
    std::fs::write(&config, format!("data_dir = {data:?}\n")).expect("our folder is writable");
    let start = || Process::start("foldstream serve", &mut host::serve(&config));
    let mut process = start();
    wait_for(&process, || process.printed("listening on "));
    process.terminate(wait::DEADLINE);
    // A note that a host reads while it opens its files. Nobody writes it, as if the disk hung.
    let pipe = data.join("catalog.newest");
    std::fs::remove_file(&pipe).expect("it was written");
    make_pipe(&pipe);
    let mut process = start();
    // Without a reader it cannot be opened: from here on the host waits for what is written.
    let _end = wait_for(&process, || {
        let mut options = std::fs::OpenOptions::new();
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let end = options.write(true).custom_flags(nonblocking).open(&pipe);
        end.ok()
    });
    assert_eq!(process.ended(), None, "{}", process.output());
    // By its default the signal ends a process, unless that is the first of a container, which then
    // never stops.
    let status = process.terminate(wait::DEADLINE);
    assert_eq!(status.code(), Some(0), "{status}: {}", process.output());
}

/// Whether a hang-up does not end the process, as it ignores or handles the signal.
fn outlives_hang_ups(process: &Process) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()));
    let masks = status.expect("a running process");
    let has = |name: &str| {
        let mask = masks.lines().find_map(|line| line.strip_prefix(name));
        let mask = mask.map(|mask| u64::from_str_radix(mask.trim(), 16));
        // SIGHUP is number 1, and the lowest bit.
        mask.is_some_and(|mask| mask.expect("a mask is a number") & 1 == 1)
    };
    has("SigIgn:") || has("SigCgt:")
}

#[test]
fn hang_ups_in_the_first_moments_of_a_start_do_not_end_the_host() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("foldstream.toml");
    let data = folder.path().join("data");
    std::fs::write(&config, format!("data_dir = {data:?}\n")).expect("our folder is writable");
    for _ in 0..3 {
        let mut process = Process::start("foldstream serve", &mut host::serve(&config));
        let begin = std::time::Instant::now();
        // Before its first line of code nothing can keep the signal from ending it.
        while !outlives_hang_ups(&process) {
            assert!(begin.elapsed() < wait::DEADLINE, "{}", process.output());
        }
        // Without a gap, as long as it starts.
        while process.printed("listening on ").is_none() {
            assert_eq!(process.ended(), None, "{}", process.output());
            assert!(begin.elapsed() < wait::DEADLINE, "{}", process.output());
            process.signal(rustix::process::Signal::HUP);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let status = process.terminate(wait::DEADLINE);
        assert_eq!(status.code(), Some(0), "{status}: {}", process.output());
    }
}

#[tokio::test]
async fn a_host_takes_as_many_open_files_as_it_may_have() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("foldstream.toml");
    std::fs::write(
        &config,
        format!("data_dir = {:?}\n", folder.path().join("data")),
    )
    .expect("our folder is writable");
    let plain = host::serve(&config);
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("ulimit -Sn 64; exec \"$0\" \"$@\"")
        .arg(plain.get_program())
        .args(plain.get_args());
    let process = Process::start("foldstream serve", &mut command);
    wait::until("the host to listen", || {
        let printed = process.printed("listening on ");
        async move { printed }
    })
    .await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id()))
        .expect("a running process");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("it is limited");
    let figures: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert!(
        figures[0] == figures[1] || figures[0] == "1048576",
        "{line}"
    );
}

fn limit_descriptors(host: &mut Host, count: u64) {
    let id = i32::try_from(host.process().id()).expect("a number of a process");
    let limit = Rlimit {
        current: Some(count),
        maximum: Some(count),
    };
    prlimit(Pid::from_raw(id), Resource::Nofile, limit).expect("our own child can be limited");
}

#[tokio::test]
async fn a_host_that_ran_out_of_open_files_still_answers_and_says_what_to_raise() {
    let mut host = Host::start().await;
    let module = guests::module("ledger");
    host.client().deploy(LEDGER, &module).await;
    limit_descriptors(&mut host, FEW);
    for number in 0..FEW {
        host.client()
            .upload(module.clone(), &format!("?name=more-{number}"))
            .await
            .expect(201);
    }
    // Some have found none left, and say what helps; nobody is advised to remove a state for it.
    let told = wait::until("a deployment to wait", || async {
        let waiting = host.client().get("/v1/deployments").await.text();
        waiting.contains("Too many open files").then_some(waiting)
    })
    .await;
    assert!(told.contains("LimitNOFILE"), "{told}");
    assert!(
        !told.contains("remove it") && !host.output().contains("restore the file"),
        "{told}"
    );

    // New connections are let in, modules are checked, and what runs continues.
    cli::on(&host, &["list"]).expect(0);
    let found = cli::on(&host, &["doctor"]);
    assert!(
        found
            .stdout
            .lines()
            .any(|line| line.contains("open files") && line.contains("48")),
        "{}",
        found.stdout
    );
    let damaged = host
        .client()
        .upload(module[..module.len() / 2].to_vec(), "?name=half")
        .await;
    assert!(
        damaged.status.is_client_error() && damaged.text().contains("malformed"),
        "{}",
        damaged.text()
    );
    cli::on(
        &host,
        &[
            "events",
            "append",
            "orders.ada.placed",
            r#"{"order":"1","amount":1}"#,
        ],
    )
    .expect(0);
    assert_eq!(host.client().reached(LEDGER, 1).await.events_applied, 1);
}

#[tokio::test]
async fn idle_connections_leave_a_host_the_open_files_that_it_needs_itself() {
    let mut host = Host::start().await;
    let module = guests::module("ledger");
    host.client().deploy(LEDGER, &module).await;
    limit_descriptors(&mut host, FEW);
    let address = host.url().trim_start_matches("http://").to_owned();
    let mut idle = Vec::new();
    for _ in 0..2 * FEW {
        idle.push(
            tokio::net::TcpStream::connect(&address)
                .await
                .expect("the system takes connections"),
        );
    }
    // Those that found no place are closed, so a later one is let in as soon as one of the others
    // leaves.
    drop(idle.split_off(8));
    let (subject, data) = ("orders.ada.placed", r#"{"order":"1","amount":1}"#);
    wait::until("the host to let a command in", || async {
        let appended = cli::on(&host, &["events", "append", subject, data]);
        (appended.code == 0).then_some(())
    })
    .await;
    wait::until("the host to let a client in", || async {
        let asked = host.client().request(reqwest::Method::GET, "/livez");
        host.client().try_send(asked).await.ok()
    })
    .await;
    assert_eq!(host.client().reached(LEDGER, 1).await.events_applied, 1);
}

#[test]
fn files_without_an_end_are_refused_and_not_read_for_ever() {
    for (arguments, code) in [
        (&["inspect", "/dev/zero"][..], 4),
        (&["deploy", "/dev/zero"], 4),
        (&["config", "check", "--config", "/dev/zero"], 2),
        (&["serve", "--config", "/dev/zero"], 2),
        (&["list", "--token-file", "/dev/zero"], 2),
        (&["list", "--ca", "/dev/zero"], 2),
    ] {
        let output = cli::run(arguments).expect(code);
        assert!(
            output.stderr.contains("/dev/zero"),
            "{arguments:?}: {}",
            output.stderr
        );
    }
}

#[test]
fn a_configuration_that_is_a_pipe_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipe = folder.path().join("foldstream.toml");
    make_pipe(&pipe);
    let name = pipe.display().to_string();
    for arguments in [&["serve"][..], &["config", "check"]] {
        let mut command = host::foldstream();
        command.args(arguments).args(["--config", &name]);
        let mut process = Process::start("foldstream", &mut command);
        let status = process.wait(wait::DEADLINE);
        let words =
            format!("{name}: cannot be read: it is not a regular file; give the file itself");
        assert!(
            status.code() == Some(2) && process.output().contains(&words),
            "{status}: {}",
            process.output()
        );
    }
}

#[tokio::test]
async fn a_host_whose_log_nobody_reads_serves_and_stops_in_order() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, pipe) = (
        folder.path().join("foldstream.toml"),
        folder.path().join("log"),
    );
    let port = free_port();
    let data = folder.path().join("data");
    let config = format!("data_dir = {data:?}\n[serve]\nlisten = \"127.0.0.1:{port}\"\n");
    std::fs::write(&file, config).expect("our folder is writable");
    make_pipe(&pipe);
    // Both ends are ours, so that the pipe is full before the host writes its first line.
    let mut full = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(&pipe)
        .expect("a pipe opens");
    while full.write(&[b'x'; 4_096]).is_ok() {}
    let plain = host::foldstream();
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" serve --config \"$1\" 2>\"$2\""])
        .arg(plain.get_program())
        .args([&file, &pipe])
        .env("XDG_RUNTIME_DIR", folder.path());
    let mut process = Process::start("foldstream serve", &mut command);
    let client = Client::new(&format!("http://127.0.0.1:{port}"));
    wait::until("the host to answer", || async {
        let asked = client.request(reqwest::Method::GET, "/livez");
        client.try_send(asked).await.ok()
    })
    .await;
    let status = process.terminate(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{status}");
}

/// How often a body is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Once,
    /// Until the client hangs up.
    Repeatedly,
}

/// What answers every request with this head, and then sends the body.
fn answers(head: &'static str, body: &'static str, sent: Sent) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            // The whole request is small, and comes at once.
            let _ = stream.read(&mut [0; 4_096]);
            let times = match sent {
                Sent::Once => 1,
                Sent::Repeatedly => 1_000,
            };
            let body = body.repeat(times);
            let mut written = stream.write_all(head.as_bytes());
            // Until the client hangs up.
            while written.is_ok() {
                written = stream.write_all(body.as_bytes());
                if sent == Sent::Once {
                    break;
                }
            }
        }
    });
    url
}

#[test]
fn answers_without_an_end_are_not_read_for_ever_and_take_over_no_terminal() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
    const BROKEN: &str = "HTTP/1.1 500 X\r\ncontent-type: text/plain\r\n\r\n";
    const BAD: &str = "HTTP/1.1 400 X\r\ncontent-type: application/problem+json\r\n\r\n";
    for (head, body) in [(OK, "[1,"), (BROKEN, "text")] {
        let url = answers(head, body, Sent::Repeatedly);
        let output = cli::run(&["--url", &url, "list"]).expect(1);
        assert!(output.stderr.contains("more than"), "{}", output.stderr);
    }
    let problem =
        r#"{"type":"invalid","title":"t","status":400,"detail":"a\u001b[2J\nerror: forged\u202e"}"#;
    let url = answers(BAD, problem, Sent::Once);
    let told = cli::run(&["--url", &url, "list"]).expect(4).stderr;
    assert!(
        told.contains("\n  error: forged") && !told.contains(['\u{1b}', '\u{202e}']),
        "{told:?}"
    );
}

#[test]
fn names_that_are_no_text_are_refused_and_no_other_is_taken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let name = folder.path().join(OsStr::from_bytes(b"data\xff"));
    let mut by_option = host::foldstream();
    by_option
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(&name)
        .current_dir(folder.path());
    let mut by_environment = host::foldstream();
    by_environment
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("FOLDSTREAM_DATA_DIR", &name);
    by_environment.current_dir(folder.path());
    for (mut command, named) in [
        (by_option, "--data"),
        (by_environment, "FOLDSTREAM_DATA_DIR"),
    ] {
        let mut process = Process::start("foldstream serve", &mut command);
        let status = process.wait(wait::DEADLINE);
        assert_eq!(status.code(), Some(2), "{}", process.output());
        let told = process.output();
        assert!(told.contains(named) && told.contains("UTF-8"), "{told}");
    }
    assert_eq!(
        std::fs::read_dir(folder.path())
            .expect("our folder")
            .count(),
        0,
        "nothing was made under another name"
    );
}
