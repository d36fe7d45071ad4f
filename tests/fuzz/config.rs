//! Configuration files: each is read, or refused with the place of each mistake; no message shows a
//! secret.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use foldstream::config::{self, Config, Origins, Override, Severity};
use foldstream::host::Host;
use foldstream::memory::Memory;
use foldstream::serve;
use foldstream_tests::fuzz::plain_http::Connection;
use foldstream_tests::fuzz::{change, drive, text};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The value of every secret here, to find it in messages.
const SECRET: &str = "hush-hush-hush-hush";

const WORDS: &[&str] = &[
    "[serve]",
    "[[serve]]",
    "[sources.a]",
    "[sources]",
    "kind = \"embedded\"",
    "kind = \"jetstream\"",
    "stream = \"A\"",
    "=",
    "\"",
    "\"\"\"",
    "'",
    "#",
    "{",
    "}",
    "[",
    "]",
    "\\u0000",
    "\\U00110000",
    "1e400",
    "inf",
    "nan",
    "-0",
    "0x7f",
    "1979-05-27",
    "9223372036854775808",
    "\"1GiB\"",
    "\"99999999TiB\"",
    "\"5s\"",
    "\"18446744073709551615s\"",
    "\"0s\"",
    "true",
    "\n",
    ".",
    "\r",
    "\u{feff}",
    "\"[::]:0\"",
    "\"*\"",
    "\"../..\"",
];

#[test]
fn configurations_are_read_or_refused_with_the_place_of_each_mistake() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let lines = sound_lines();
    drive::run("config", 700, |rng| case(rng, folder.path(), &lines));
}

#[test]
fn a_host_starts_with_every_configuration_that_passes_the_check() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = Runtime::new().expect("a runtime");
    let lines = sound_lines();
    drive::run("config_started", 40, |rng| {
        let file = folder.path().join("foldstream.toml");
        let (section, line) = line(rng, &lines);
        std::fs::write(&file, format!("[{section}]\n{}\n", extreme(rng, line)))
            .expect("our folder can be written");
        let Ok(mut config) = config::load(&Origins {
            file: Some(file),
            ..Origins::default()
        }) else {
            return "refused";
        };
        config.data_dir = folder.path().join("data");
        config.serve.listen = "127.0.0.1:0".parse().expect("an address");
        config.sources.retain(|_, source| source.is_log());
        if config
            .problems()
            .iter()
            .any(|problem| problem.severity == Severity::Error)
        {
            return "no sense";
        }
        let outcome = runtime.block_on(started(config));
        let _ = std::fs::remove_dir_all(folder.path().join("data"));
        outcome
    });
}

/// Any line that sets something, with its section.
fn line<'a>(rng: &mut Rng, lines: &'a [String]) -> (String, &'a str) {
    let keys: Vec<usize> = (0..lines.len())
        .filter(|at| lines[*at].contains(" = "))
        .collect();
    let at = *rng.choice(&keys).expect("some");
    let section = lines[..at]
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
    (section.unwrap_or("serve").to_owned(), &lines[at])
}

/// The same key with a value of its kind that is as far from the usual as it may be.
fn extreme(rng: &mut Rng, line: &str) -> String {
    let Some((key, usual)) = line.split_once(" = ") else {
        return line.to_owned();
    };
    let inner = usual.trim_matches('"');
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unit = inner.trim_start_matches(|c: char| c.is_ascii_digit());
    let value = if is_number(usual) {
        rng.choice(&["0", "1", "2", "4294967295", "9223372036854775807"])
            .expect("some")
            .to_string()
    } else if unit.len() < inner.len() && (unit.ends_with('B') || unit.ends_with('b')) {
        format!(
            "\"{}\"",
            rng.choice(&["0B", "1B", "1TiB", "16777215TiB", "18446744073709551615B"])
                .expect("some")
        )
    } else if unit.len() < inner.len() && unit.len() < 8 {
        format!(
            "\"{}\"",
            rng.choice(&[
                "0s",
                "1ns",
                "1ms",
                "1day",
                "99years",
                "100years",
                "999999years"
            ])
            .expect("some")
        )
    } else if usual == "true" || usual == "false" {
        rng.bool().to_string()
    } else {
        usual.to_owned()
    };
    format!("{key} = {value}")
}

/// Starts a host, asks it some things, and stops it.
async fn started(config: Config) -> &'static str {
    let config = Arc::new(config);
    let host = match Host::start(Arc::clone(&config)).await {
        Ok(host) => host,
        Err(error) => {
            assert!(error.to_string().len() > 20, "{error}");
            return "does not start, with words";
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut connection = Connection::new(&listener.local_addr().expect("it is bound").to_string());
    let (shutdown, shared) = (CancellationToken::new(), host.clone());
    let token = shutdown.clone();
    let server = tokio::spawn(async move { serve::run(listener, shared, &config, token).await });
    let asked = tokio::task::spawn_blocking(move || {
        let kind = [("content-type".to_owned(), b"application/json".to_vec())];
        let event = br#"{"events":[{"subject":"a.b","data":1}]}"#;
        let mut status = |method: &str, target: &str, body: &[u8]| {
            let response = connection.send(method, target.as_bytes(), &kind, body);
            let response = response.unwrap_or_else(|| panic!("{target}: no answer"));
            assert_ne!(response.status, 500, "{target}: {}", response.text());
        };
        status("GET", "/readyz", b"");
        status("POST", "/v1/events", event);
        status("GET", "/v1/events?after=0", b"");
        status(
            "GET",
            "/v1/deployments/none/entries?at-least=5&timeout=1ms",
            b"",
        );
        status("GET", "/metrics", b"");
        status("GET", "/v1/sources", b"");
    });
    let asked = asked.await;
    shutdown.cancel();
    let served = server.await.expect("the server does not panic");
    host.stop().await;
    if let Err(error) = asked {
        std::panic::resume_unwind(error.into_panic());
    }
    match served {
        Ok(()) => "served",
        Err(error) => {
            assert!(error.to_string().len() > 20, "{error}");
            "does not serve, with words"
        }
    }
}

/// The lines of the template, with what is commented out put in; secrets hold what must not be
/// shown.
fn sound_lines() -> Vec<String> {
    let template = config::template();
    let lines = template.lines().filter_map(|line| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        let is_key = line.split_once(" = ").is_some_and(|(key, _)| {
            key.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        });
        let is_section = line.starts_with('[') && line.ends_with(']');
        match line.split_once(" = ") {
            Some((key @ ("token" | "password"), _)) if is_key => {
                Some(format!("{key} = \"{SECRET}\""))
            }
            _ => (is_key || is_section).then(|| line.to_owned()),
        }
    });
    lines.collect()
}

fn drawn(rng: &mut Rng, lines: &[String]) -> String {
    // What is left out takes its default, and most values contradict others.
    let keep = *rng.choice(&[2, 10, 50, 100]).expect("some");
    let wrong = *rng.choice(&[0, 1, 5]).expect("some");
    let mut text = String::new();
    for line in lines {
        if line.starts_with('[') {
            text.push_str(line);
        } else if rng.u8(0..100) < keep {
            match (line.split_once(" = "), rng.u8(0..100) < wrong) {
                (Some((key, _)), true) if !line.contains(SECRET) => {
                    text.push_str(&format!("{key} = {}", value(rng)));
                }
                _ => text.push_str(line),
            }
        } else {
            continue;
        }
        text.push('\n');
    }
    if rng.u8(0..3) == 0 {
        text = change::changed_text(rng, &text, WORDS);
    }
    text
}

fn value(rng: &mut Rng) -> String {
    let units = ["ms", "s", "h", "days", "years", "KiB", "TiB", "B", "", "%"];
    match rng.u8(0..8) {
        0 => text::number(rng),
        1 => rng.bool().to_string(),
        2 => format!("[{}]", text::quoted(rng)),
        3 => format!("{{ a = {} }}", text::number(rng)),
        4 => (*rng.choice(WORDS).expect("some")).to_owned(),
        5 | 6 => format!(
            "\"{}{}\"",
            text::number(rng),
            rng.choice(&units).expect("some")
        ),
        _ => text::quoted(rng),
    }
}

fn case(rng: &mut Rng, folder: &Path, lines: &[String]) -> &'static str {
    let file = folder.join("foldstream.toml");
    let text = drawn(rng, lines);
    std::fs::write(&file, &text).expect("our folder can be written");
    let mut origins = Origins {
        file: Some(file),
        ..Origins::default()
    };
    if rng.u8(0..4) == 0 {
        let key = rng
            .choice(lines)
            .expect("some")
            .split(" = ")
            .next()
            .unwrap_or_default()
            .to_uppercase();
        origins.environment.push((
            format!("FOLDSTREAM_{}__{key}", text::any(rng).to_uppercase()),
            text::any(rng),
        ));
        origins
            .environment
            .push((format!("FOLDSTREAM_SERVE__{key}"), value(rng)));
    }
    if rng.u8(0..4) == 0 {
        let key = rng
            .choice(lines)
            .expect("some")
            .split(" = ")
            .next()
            .unwrap_or_default()
            .to_owned();
        let section = *rng
            .choice(&["serve", "state", "sources.a", "sources", "", "limits"])
            .expect("some");
        origins.overrides.push(Override {
            flag: "--set".to_owned(),
            key: format!("{section}.{key}"),
            value: value(rng),
        });
    }
    match config::load(&origins) {
        Err(error) => {
            let told = error.to_string();
            assert!(!error.mistakes.is_empty(), "no mistake is named: {text}");
            assert!(!is_shown(&told, &text), "a secret is shown: {told}\n{text}");
            assert!(
                error
                    .mistakes
                    .iter()
                    .all(|mistake| !mistake.origin.is_empty() && mistake.message.len() < 4_096),
                "{told}"
            );
            "refused"
        }
        Ok(config) => sense(&config, &text),
    }
}

/// A text is a secret only if a key of that name holds it.
fn is_shown(told: &str, text: &str) -> bool {
    let held = text.lines().filter(|line| line.contains(SECRET));
    let mut held = held
        .filter_map(|line| line.split_once(" = "))
        .map(|(key, _)| key);
    held.all(|key| matches!(key, "token" | "password")) && told.contains(SECRET)
}

fn sense(config: &Config, text: &str) -> &'static str {
    assert!(
        !format!("{config:?}").contains(SECRET) || !is_shown(SECRET, text),
        "a secret is shown: {text}"
    );
    let problems = config.problems();
    for problem in &problems {
        assert!(
            !problem.message.is_empty() && problem.message.len() < 8_192,
            "{problem:?}"
        );
        assert!(
            !is_shown(&problem.message, text),
            "a secret is shown: {problem:?}\n{text}"
        );
    }
    if problems
        .iter()
        .any(|problem| problem.severity == Severity::Error)
    {
        return "no sense";
    }
    // What a host makes of it before it serves.
    let _ = (config.shares(), config.batch_limits());
    let _ = config.state_options(1 << 20, &Memory::unlimited());
    let _ = config.module_options("cache".into(), "compiler".into(), &Memory::unlimited());
    "sound"
}
