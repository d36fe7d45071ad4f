//! Each mistake, one by one, with the words that a person reads.

use std::path::Path;

use super::load::SECTIONS;
use super::*;
use crate::source::SOURCE_KINDS;
use crate::source::jetstream::JetStreamSettings;

/// Loads a file with this text; what is said of it begins with `LINE: ` instead of the file's path.
fn from_file(text: &str) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("foldstream.toml");
    std::fs::write(&file, text).expect("write the file");
    load(&Origins {
        file: Some(file.clone()),
        ..Origins::default()
    })
    .map_err(|error| {
        let prefix = format!("{}:", file.display());
        error
            .mistakes
            .iter()
            .map(|mistake| mistake.to_string().replacen(&prefix, "", 1))
            .collect()
    })
}

fn mistake(text: &str) -> String {
    let mistakes = from_file(text).expect_err("the file has a mistake");
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    mistakes.into_iter().next().expect("counted above")
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Config, String> {
    let environment = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    load(&Origins {
        environment,
        ..Origins::default()
    })
    .map_err(|error| error.to_string())
}

fn from_set(key: &str, value: &str) -> Result<Config, String> {
    let setting = Override {
        flag: "--set".to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    load(&Origins {
        overrides: vec![setting],
        ..Origins::default()
    })
    .map_err(|error| error.to_string())
}

fn same(one: &Config, other: &Config) -> bool {
    toml::Table::try_from(one).expect("can be written")
        == toml::Table::try_from(other).expect("can be written")
}

/// The findings about a configuration whose data folder is fine, as `key: message`.
fn findings(text: &str) -> Vec<String> {
    let config = from_file(text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    config.problems().iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_at_all_is_the_default() {
    let config = load(&Origins::default()).expect("loads");
    assert!(same(&config, &Config::default()));
    assert_eq!(config.problems(), vec![]);
}

#[test]
fn mistake_that_quotes_a_long_or_hostile_value_is_short_and_harmless() {
    let said = mistake(&format!(
        "[serve]\nlisten = [\"{}\"]\n",
        "x".repeat(100_000)
    ));
    assert!(
        said.len() < 2_048 && said.contains("`serve.listen` must be an IP address"),
        "{said}"
    );
    let said = mistake("[serve]\n\"a\\u001B[2J\" = 1\n");
    assert!(
        !said.contains('\u{1b}') && said.contains("unknown key"),
        "{said:?}"
    );
}

#[test]
fn durations_that_no_clock_can_hold_are_refused() {
    for (section, key) in SECTIONS
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(move |key| (section, key)))
    {
        if key.kind() == crate::settings::Kind::Duration {
            let said = mistake(&format!(
                "[{section}]\n{} = \"18446744073709551615s\"\n",
                key.name
            ));
            assert!(said.contains("longer than 100 years"), "{said}");
        }
    }
    let said = from_set("sources.events.max_age", "101years").expect_err("too long");
    assert!(
        said.contains("no kind") || said.contains("longer than 100 years"),
        "{said}"
    );
    assert!(from_file("[serve]\nrequest_timeout = \"99years\"\n").is_ok());
}

#[test]
fn later_origins_win() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("foldstream.toml");
    std::fs::write(
        &file,
        "[pipeline]\nattempts = 2\nbatch_events = 2\n[limits]\ndeployments = 2\n",
    )
    .expect("write");
    let mut origins = Origins {
        file: Some(file),
        ..Origins::default()
    };
    origins.environment = vec![
        (
            "FOLDSTREAM_PIPELINE__BATCH_EVENTS".to_owned(),
            "3".to_owned(),
        ),
        ("FOLDSTREAM_LIMITS__DEPLOYMENTS".to_owned(), "3".to_owned()),
    ];
    let setting = |key: &str| Override {
        flag: "--set".to_owned(),
        key: key.to_owned(),
        value: "4".to_owned(),
    };
    origins.overrides = vec![setting("limits.deployments")];
    let config = load(&origins).expect("loads");
    assert_eq!(
        (
            config.pipeline.attempts,
            config.pipeline.batch_events,
            config.limits.deployments
        ),
        (2, 3, 4)
    );
}

#[test]
fn template_shows_every_default_under_its_key() {
    let text = template();
    let as_printed = from_file(&text).expect("the template loads");
    assert!(
        same(&as_printed, &Config::default()),
        "as printed, it changes nothing"
    );

    // With every comment mark before a key of the fixed sections removed, it says the defaults once
    // more.
    let fixed: Vec<&str> = text.split("\n# Sources by name").collect();
    let after = fixed[1]
        .split_once("\n[modules]")
        .expect("another section follows")
        .1;
    let whole = format!("{}\n# Limits.\n[modules]{after}", fixed[0]);
    let mut count = 0;
    let mut uncommented = String::new();
    for line in whole.lines() {
        match line.strip_prefix("# ").filter(|rest| is_assignment(rest)) {
            Some(rest) if !is_unset(rest) => {
                count += 1;
                uncommented.push_str(rest);
            }
            _ => uncommented.push_str(line),
        }
        uncommented.push('\n');
    }
    let explicit =
        from_file(&uncommented).unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{uncommented}"));
    assert!(same(&explicit, &Config::default()), "{uncommented}");
    let with_default = SECTIONS
        .iter()
        .flat_map(|(_, keys)| keys.iter())
        .filter(|key| !key.is_optional())
        .count();
    assert_eq!(
        count,
        with_default + 1,
        "every key with a default, and data_dir"
    );
}

fn is_assignment(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
}

/// Keys that are shown with an example, as they are unset by default.
fn is_unset(line: &str) -> bool {
    [
        "anonymous = ",
        "token = ",
        "token_file = ",
        "tokens_file = ",
        "tls_cert = ",
        "tls_key = ",
    ]
    .iter()
    .any(|key| line.starts_with(key))
}

#[test]
fn every_example_in_a_comment_is_accepted() {
    for kind in SOURCE_KINDS {
        for key in kind.keys {
            let example = key
                .example()
                .or_else(|| (!key.is_optional()).then(|| "false".to_owned()));
            let example =
                example.unwrap_or_else(|| panic!("{} has neither default nor example", key.name));
            let text = format!(
                "[sources.orders]\nkind = \"{}\"\n{} = {example}\n",
                kind.name, key.name
            );
            from_file(&text).unwrap_or_else(|mistakes| panic!("{text}: {mistakes:?}"));
        }
    }
    for (section, keys) in SECTIONS {
        for key in keys.iter().filter(|key| key.is_optional()) {
            let example = key
                .example()
                .unwrap_or_else(|| panic!("{section}.{} has no example", key.name));
            from_file(&format!("[{section}]\n{} = {example}\n", key.name))
                .expect("the example is accepted");
        }
    }
}

#[test]
fn unknown_keys_are_named_with_line_and_suggestion() {
    assert_eq!(
        mistake("[serve]\n\nlisen = \"127.0.0.1:1\"\n"),
        "3: unknown key `serve.lisen`; did you mean `serve.listen`?"
    );
    assert_eq!(
        mistake("data_dri = \"x\"\n"),
        "1: unknown key `data_dri`; did you mean `data_dir`?"
    );
    assert_eq!(
        mistake("listen = \"127.0.0.1:1\"\n"),
        "1: unknown key `listen`; did you mean `serve.listen`?"
    );
    assert_eq!(
        mistake("[serve]\nmemtable_bytes = 1\n"),
        "2: unknown key `serve.memtable_bytes`; did you mean `state.memtable_bytes`?"
    );
    assert_eq!(
        mistake("[serve]\nbody-bytes-max = 1\n"),
        "2: unknown key `serve.body-bytes-max`; did you mean `serve.body_bytes_max`?"
    );
    assert_eq!(
        mistake("[log]\nxyzzy = 1\n"),
        "2: unknown key `log.xyzzy`; the keys of [log] are level, format"
    );
    assert_eq!(
        mistake("[xyzzy]\nplugh = 1\n"),
        "1: unknown key `xyzzy`; `foldstream config template` lists all keys"
    );
    assert_eq!(
        mistake("[pipelines]\nattempts = 1\n"),
        "1: unknown key `pipelines`; did you mean `pipeline`?"
    );
}

#[test]
fn unknown_keys_of_sources_are_named_with_suggestion() {
    assert_eq!(
        mistake("[sources.orders]\nkind = \"jetstream\"\nstrem = \"ORDERS\"\n"),
        "3: unknown key `sources.orders.strem`; did you mean `sources.orders.stream`?"
    );
    assert_eq!(
        mistake("[sources.orders]\nkind = \"embedded\"\nstream = \"ORDERS\"\n"),
        "3: `sources.orders.stream` does not apply to a source of kind embedded; remove it"
    );
    assert_eq!(
        mistake("[sources.orders]\nstream = \"ORDERS\"\n"),
        "2: source `orders` has no kind; add `sources.orders.kind` with \"embedded\" or \
         \"jetstream\""
    );
    assert_eq!(
        mistake("[sources.orders]\n"),
        "1: source `orders` has no kind; add `sources.orders.kind` with \"embedded\" or \
         \"jetstream\""
    );
    assert_eq!(
        mistake("[sources.orders]\nkind = \"kafka\"\n"),
        "2: `sources.orders.kind` must be \"embedded\" or \"jetstream\", not \"kafka\""
    );
}

#[test]
fn values_of_a_wrong_type_are_named_with_what_is_expected() {
    for (text, said) in [
        (
            "[serve]\nlisten = \"localhost\"\n",
            "2: `serve.listen` must be an IP address with a port in quotes, such as \
             \"127.0.0.1:7575\", not \"localhost\"",
        ),
        (
            "[serve]\nwait_max = 30\n",
            "2: `serve.wait_max` must be a duration in quotes, such as \"500ms\", \"5s\" or \
             \"2h\", not 30",
        ),
        (
            "[serve]\nbody_bytes_max = \"big\"\n",
            "2: `serve.body_bytes_max` must be a size, such as 65536, \"64KiB\" or \"1GiB\", not \
             \"big\"",
        ),
        (
            "[serve]\nwatches_max = -1\n",
            "2: `serve.watches_max` must be a whole number, zero or more, not -1",
        ),
        (
            "[serve]\ninsecure = \"yes\"\n",
            "2: `serve.insecure` must be true or false, not \"yes\"",
        ),
        (
            "[serve]\ntoken = 12345\n",
            "2: `serve.token` must be a string in quotes, not (hidden)",
        ),
        (
            "[log]\nformat = \"xml\"\n",
            "2: `log.format` must be \"text\" or \"json\", not \"xml\"",
        ),
        (
            "data_dir = 5\n",
            "1: `data_dir` must be a path in quotes, not 5",
        ),
        (
            "serve = 5\n",
            "1: `serve` must be a section, such as [serve], not 5",
        ),
        (
            "sources = 5\n",
            "1: `sources` must be a section, such as [serve], not 5",
        ),
        (
            "[sources.a]\nkind = \"jetstream\"\nservers = \"nats://x\"\n",
            "3: `sources.a.servers` must be a list of strings, such as [\"one\", \"two\"], not \
             \"nats://x\"",
        ),
    ] {
        assert_eq!(mistake(text), said);
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let mistakes = from_file("[serve]\nlisen = 1\nwait_max = 30\n").expect_err("two mistakes");
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
}

#[test]
fn broken_toml_is_reported_with_its_line() {
    let said = mistake("[serve]\nlisten = \n");
    assert!(said.starts_with("2: is not valid TOML: "), "{said}");
    let said = mistake("[limits]\ndeployments = 1\ndeployments = 2\n");
    assert!(
        said.starts_with("3: is not valid TOML: duplicate key"),
        "{said}"
    );
}

#[test]
fn missing_file_says_how_to_make_one() {
    let file = Path::new("/nonexistent/foldstream.toml");
    let error = load(&Origins {
        file: Some(file.to_owned()),
        ..Origins::default()
    })
    .expect_err("there is none");
    let said = error.to_string();
    assert!(
        said.starts_with("/nonexistent/foldstream.toml: cannot be read: "),
        "{said}"
    );
    assert!(
        said.ends_with("`foldstream config template` prints a template"),
        "{said}"
    );
}

#[test]
fn environment_reaches_every_kind_of_key() {
    let config = from_environment(&[
        ("FOLDSTREAM_DATA_DIR", "/var/lib/foldstream"),
        ("FOLDSTREAM_SERVE__LISTEN", "127.0.0.1:0"),
        ("FOLDSTREAM_SERVE__INSECURE", "true"),
        ("FOLDSTREAM_SERVE__WAIT_MAX", "7s"),
        ("FOLDSTREAM_SERVE__TOKEN", "12345"),
        ("FOLDSTREAM_STATE__MEMTABLE_BYTES", "8MiB"),
        ("FOLDSTREAM_STATE__CACHE_BYTES_TOTAL", "4096"),
        ("FOLDSTREAM_LOG__FORMAT", "json"),
        ("FOLDSTREAM_SOURCES__ORDERS__KIND", "jetstream"),
        ("FOLDSTREAM_SOURCES__ORDERS__STREAM", "ORDERS"),
        (
            "FOLDSTREAM_SOURCES__ORDERS__SERVERS",
            "nats://a:4222, nats://b:4222",
        ),
    ])
    .expect("loads");
    assert_eq!(config.data_dir, Path::new("/var/lib/foldstream"));
    assert_eq!(config.serve.listen.port(), 0);
    assert!(config.serve.insecure);
    assert_eq!(config.serve.wait_max, Duration::from_secs(7));
    assert_eq!(config.serve.token.as_deref(), Some("12345"));
    assert_eq!(
        (config.state.memtable_bytes, config.state.cache_bytes_total),
        (8 << 20, 4_096)
    );
    assert_eq!(config.log.format, LogFormat::Json);
    let Some(SourceSettings::JetStream(orders)) = config.sources.get("orders") else {
        panic!("{:?}", config.sources)
    };
    assert_eq!(orders.stream, "ORDERS");
    assert_eq!(orders.servers, ["nats://a:4222", "nats://b:4222"]);
}

#[test]
fn environment_of_others_is_left_alone() {
    let config = from_environment(&[
        ("FOLDSTREAM_URL", "http://127.0.0.1:1"),
        ("FOLDSTREAM_PORT", "tcp://10.0.0.1:7575"),
        ("FOLDSTREAM_SERVICE_HOST", "10.0.0.1"),
        ("OTHER_SERVE__LISTEN", "nonsense"),
    ]);
    assert!(same(&config.expect("loads"), &Config::default()));
}

#[test]
fn variable_that_lacks_an_underscore_is_refused_with_its_right_name() {
    for (name, right) in [
        ("FOLDSTREAM_SERVE_LISTEN", "FOLDSTREAM_SERVE__LISTEN"),
        (
            "FOLDSTREAM_SERVE_TOKEN_FILE",
            "FOLDSTREAM_SERVE__TOKEN_FILE",
        ),
        ("FOLDSTREAM_LOG_LEVEL", "FOLDSTREAM_LOG__LEVEL"),
        (
            "FOLDSTREAM_SOURCES_WEB_ORDERS_TOKEN_FILE",
            "FOLDSTREAM_SOURCES__WEB_ORDERS__TOKEN_FILE",
        ),
        (
            "FOLDSTREAM_SOURCES_ORDERS_KIND",
            "FOLDSTREAM_SOURCES__ORDERS__KIND",
        ),
    ] {
        let said = from_environment(&[(name, "x")]).expect_err("would be ignored");
        assert_eq!(
            said,
            format!(
                "{name}: would be ignored; write {right}, with two underscores after each section"
            )
        );
    }
}

#[test]
fn variables_of_the_command_line_are_no_keys() {
    let own = [
        "URL",
        "TOKEN",
        "TOKEN_FILE",
        "CA",
        "OUTPUT",
        "CONFIG",
        "DIE_AT",
    ];
    let names: Vec<String> = own
        .iter()
        .map(|name| format!("FOLDSTREAM_{name}"))
        .collect();
    let variables: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    assert!(same(
        &from_environment(&variables).expect("loads"),
        &Config::default()
    ));
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    let said = from_environment(&[("FOLDSTREAM_SERVE__LISEN", "x")]).expect_err("unknown");
    assert_eq!(
        said,
        "FOLDSTREAM_SERVE__LISEN: unknown key `serve.lisen`; did you mean `serve.listen`?"
    );
    let said = from_environment(&[("FOLDSTREAM_SERV__LISTEN", "x")]).expect_err("unknown");
    assert_eq!(
        said,
        "FOLDSTREAM_SERV__LISTEN: unknown section `serv` in `serv.listen`; did you mean `serve`?"
    );
    let said =
        from_environment(&[("FOLDSTREAM_PIPELINE__ATTEMPTS", "many")]).expect_err("no number");
    assert_eq!(
        said,
        "FOLDSTREAM_PIPELINE__ATTEMPTS: `pipeline.attempts` must be a whole number, zero or more, \
         not \"many\""
    );
}

#[test]
fn variable_reaches_a_source_whose_name_has_a_hyphen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("foldstream.toml");
    std::fs::write(
        &file,
        "[sources.web-orders]\nkind = \"jetstream\"\nstream = \"A\"\n",
    )
    .expect("write");
    let environment = vec![(
        "FOLDSTREAM_SOURCES__WEB_ORDERS__STREAM".to_owned(),
        "B".to_owned(),
    )];
    let config = load(&Origins {
        file: Some(file),
        environment,
        overrides: vec![],
    })
    .expect("loads");
    let Some(SourceSettings::JetStream(orders)) = config.sources.get("web-orders") else {
        panic!("{:?}", config.sources)
    };
    assert_eq!(orders.stream, "B");
    assert_eq!(config.sources.len(), 1);
}

#[test]
fn mistakes_in_flags_name_the_flag() {
    assert_eq!(
        from_set("serve.lisen", "x").expect_err("unknown"),
        "--set: unknown key `serve.lisen`; did you mean `serve.listen`?"
    );
    assert_eq!(
        from_set("pipeline.attempts", "3")
            .expect("loads")
            .pipeline
            .attempts,
        3
    );
}

#[test]
fn secrets_are_hidden_where_the_configuration_is_shown() {
    let config = from_file(
        "[serve]\ntoken = \"SECRET-1\"\n[sources.a]\nkind = \"jetstream\"\nstream = \"A\"\nuser = \
         \"u\"\npassword = \"SECRET-2\"\nservers = [\"nats://u:SECRET-3@host:4222\", \
         \"u:SECRET-4@other:4222\"]\n",
    )
    .expect("loads");
    let shown = config.to_shown().to_string();
    assert!(!shown.contains("SECRET"), "{shown}");
    assert!(shown.contains("nats://(hidden)@host:4222"), "{shown}");
}

/// Settings, each followed by what is found to be wrong with it.
const CONTRADICTIONS: &str = r#"
serve.wait_max = "2m"
    serve.wait_max: is not less than serve.request_timeout, which would end the wait first; lower it, or raise the other
serve.request_timeout = "0s"
    serve.request_timeout: must be more than zero
serve.body_bytes_max = 0
    serve.body_bytes_max: must be more than zero
serve.watches_max = 0
    serve.watches_max: must be more than zero
serve.queries_max = 0
    serve.queries_max: must be more than zero
serve.queries_max = 1025
    serve.queries_max: is more than 1024; each takes a thread, and 64 is usual
serve.token = ""
    serve.token: is empty; remove it or set one
serve.token = "short"
    serve.token: has fewer than 16 characters and may be guessed; create one with `openssl rand -hex 32`
serve.token = "with space inside of it"
    serve.token: has characters that an HTTP header cannot carry; use printable ASCII without spaces
serve.insecure = true
    serve.insecure: has no effect with a loopback address; remove it
modules.memory_bytes = "2GiB"
    modules.memory_bytes: is more than modules.memory_bytes_max; lower it, or raise the other
modules.deadline = "0s"
    modules.deadline: must be more than zero
modules.upload_bytes_max = 0
    modules.upload_bytes_max: must be more than zero
modules.instances_max = 0
    modules.instances_max: must be more than zero
modules.instances_max = 1063
    modules.instances_max: leaves fewer than 64 instances for queries and rebuilds in addition to limits.deployments; raise it to 1064, or lower the other
state.flush_interval = "0s"
    state.flush_interval: must be more than zero
state.memtable_bytes = "1GiB"
state.memtable_bytes_total = "512MiB"
    state.memtable_bytes: is more than state.memtable_bytes_total; lower it, or raise the other
state.timers_in_a_row_max = 0
    state.timers_in_a_row_max: must be more than zero
state.state_bytes_max = "1KiB"
    state.value_bytes_max: is more than state.state_bytes_max; lower it, or raise the other
pipeline.batch_events = 0
    pipeline.batch_events: must be more than zero
pipeline.batch_events = 100000
    pipeline.batch_events: is more than 65536; 2048 is usual
pipeline.attempts = 0
    pipeline.attempts: must be more than zero
pipeline.retry_percent = 101
    pipeline.retry_percent: is more than 100; 20 is usual
rollout.attempts = 0
    rollout.attempts: must be more than zero
pipeline.initial_backoff = "1m"
    pipeline.initial_backoff: is more than pipeline.max_backoff; lower it, or raise the other
limits.deployments = 0
    limits.deployments: must be more than zero
data_dir = ""
    data_dir: is empty; give a folder
data_dir = "/dev/null"
    data_dir: /dev/null is not a folder; give another one
"#;

/// The settings of such a list, each with what is found: indented lines are findings.
fn with_findings(list: &str) -> Vec<(String, &str)> {
    let mut settings = String::new();
    let mut all = Vec::new();
    for line in list.lines().skip(1) {
        match line.strip_prefix("    ") {
            Some(said) => all.push((std::mem::take(&mut settings), said)),
            None => settings.extend([line, "\n"]),
        }
    }
    all
}

#[test]
fn contradictions_are_found_one_by_one() {
    for (settings, said) in with_findings(CONTRADICTIONS) {
        assert_eq!(findings(&settings), [said], "{settings}");
    }
    let said = findings("[modules]\ndeadline = \"2m\"\n");
    assert_eq!(
        said[0],
        "modules.deadline: is more than modules.deadline_max; lower it, or raise the other"
    );
    let said = findings("[log]\nlevel = \"foldstream=shout\"\n");
    assert!(
        said[0].starts_with("log.level: `foldstream=shout` is not a filter ("),
        "{said:?}"
    );
}

/// The same of settings of a JetStream source.
const CONTRADICTIONS_IN_SOURCES: &str = r#"
    sources.a.stream: is missing; give the name of the stream, as `nats stream ls` shows it
stream = "orders.>"
    sources.a.stream: `orders.>` is not the name of a stream; subjects belong in modules
stream = "A"
servers = ["http://x"]
    sources.a.servers: `http://x` is not a server; write nats://HOST:PORT or tls://HOST:PORT
stream = "A"
user = "u"
    sources.a.user: needs sources.a.password as well
stream = "A"
password = "p"
    sources.a.password: needs sources.a.user as well
stream = "A"
domain = "d"
api_prefix = "p"
    sources.a.domain: contradicts sources.a.api_prefix; set one of them
stream = "A"
user = "u"
password = "p"
token = "t"
    sources.a.user: contradicts sources.a.token; choose one way to sign in
stream = "A"
creds = "FILE"
nkey = "FILE"
    sources.a.creds: contradicts sources.a.nkey; choose one way to sign in
stream = "A"
jwt = "FILE"
    sources.a.jwt: needs sources.a.nkey as well
stream = "A"
tls_cert = "FILE"
    sources.a.tls_cert: needs sources.a.tls_key as well
stream = "A"
token = "t"
token_file = "FILE"
    sources.a.token: contradicts sources.a.token_file; set one of them
stream = "A"
creds = "/nonexistent"
    sources.a.creds: cannot read /nonexistent: No such file or directory (os error 2); give a file that this user may read
stream = "A"
tls_ca = "/tmp"
    sources.a.tls_ca: /tmp is not a regular file; give the file itself
"#;

#[test]
fn contradictions_in_sources_are_found_one_by_one() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().display().to_string();
    for (settings, said) in with_findings(CONTRADICTIONS_IN_SOURCES) {
        let settings = settings.replace("FILE", &path);
        let text = format!("[sources.a]\nkind = \"jetstream\"\n{settings}");
        assert_eq!(findings(&text), [said], "{text}");
    }
    assert_eq!(
        findings("[sources.a]\nkind = \"embedded\"\nmax_bytes = 0\n"),
        ["sources.a.max_bytes: must be more than zero"]
    );
    let said = findings("[sources.\"A B\"]\nkind = \"embedded\"\n");
    assert!(
        said[0].starts_with("sources.A B: a source's name has 1 to 63 "),
        "{said:?}"
    );
}

#[test]
fn exposure_needs_tls_and_a_token_or_consent() {
    let open = "[serve]\nlisten = \"0.0.0.0:7575\"\n";
    let [said] = &findings(open)[..] else {
        panic!("one finding")
    };
    assert!(
        said.contains("needs TLS (serve.tls_cert and serve.tls_key) and a token"),
        "{said}"
    );
    let [said] = &findings(&format!("{open}token = \"0123456789abcdef\"\n"))[..] else {
        panic!("one finding")
    };
    assert!(
        said.contains("needs TLS (serve.tls_cert and serve.tls_key);"),
        "{said}"
    );
    let config = from_file(&format!("{open}insecure = true\n")).expect("loads");
    let problems = config.problems();
    assert!(
        problems
            .iter()
            .all(|problem| problem.severity == Severity::Warning),
        "{problems:?}"
    );
    assert_eq!(problems.len(), 1);
}

#[test]
fn secrets_are_read_from_their_files() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "s3cret\n").expect("write");
    let serve = Serve {
        token_file: Some(file.path().to_owned()),
        ..Serve::default()
    };
    assert_eq!(
        serve.bearer_token().expect("can be read").as_deref(),
        Some("s3cret")
    );
    let source = JetStreamSettings {
        password_file: Some(file.path().to_owned()),
        ..JetStreamSettings::default()
    };
    assert_eq!(
        source
            .options("orders")
            .expect("can be read")
            .password
            .as_deref(),
        Some("s3cret")
    );
    std::fs::write(file.path(), "\n").expect("write");
    let said = serve.bearer_token().expect_err("is empty").to_string();
    assert!(
        said.starts_with("serve.token_file: cannot read ") && said.contains("it is empty"),
        "{said}"
    );
}

#[test]
fn no_form_of_a_configuration_shows_a_secret() {
    let mut config = Config::default();
    config.serve.token = Some("s3cret-s3cret-s3cret".into());
    assert!(!format!("{config:?} {:#?}", config.serve).contains("s3cret"));
}

#[test]
fn lanes_are_a_number_or_auto() {
    use crate::lanes::Lanes;
    for (text, lanes) in [("3", Lanes::Count(3)), ("auto", Lanes::Auto)] {
        let quoted = if text == "auto" { "\"auto\"" } else { text };
        let config = from_file(&format!("[modules]\nlanes = {quoted}\n")).expect("loads");
        assert_eq!(config.modules.lanes, lanes);
        let config = from_environment(&[("FOLDSTREAM_MODULES__LANES", text)]).expect("loads");
        assert_eq!(config.modules.lanes, lanes);
    }
    for wrong in ["0", "65", "\"many\"", "[2]"] {
        let errors = from_file(&format!("[modules]\nlanes = {wrong}\n")).expect_err("is refused");
        assert!(
            errors[0].contains("must be \"auto\", or a number from 1 to 64, not "),
            "{errors:?}"
        );
    }
}
