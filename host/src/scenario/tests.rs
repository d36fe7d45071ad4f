//! Claims about files of scenarios. What modules do is shown by the suite.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const FILE: &str = "
vars: { customer: ada }
events:
  placed:
    subject: orders.${customer}.placed
    data: { order: '${order}', total_cents: 100 }
scenarios:
  - name: orders add up
    given:
      - { event: placed, with: { order: 1 }, times: 2 }
    when:
      - { pass: 15m }
      - { query: customer, args: { customer: '${customer}' } }
    then:
      entries: { 'customer/${customer}': { orders: 2 } }
      answers: [{ orders: 2 }]
";

fn mistake(text: &str) -> String {
    refused(&format!("scenarios:\n  - name: a\n{text}"))
}

/// What is wrong in a file, after its line and column.
fn refused(text: &str) -> String {
    let mistake = Document::read(text).expect_err("has a mistake");
    let place = mistake
        .place
        .map_or_else(String::new, |Place { line, column }| {
            format!("{line}:{column}: ")
        });
    format!("{place}{mistake}")
}

/// The data of an event whose data is written like this.
fn data(text: &str) -> Value {
    let file = format!("scenarios:\n  - name: a\n    when: [{{ subject: a, data: {text} }}]\n");
    let document = Document::read(&file).unwrap_or_else(|mistake| panic!("{text}: {mistake}"));
    document.scenarios()[0].when[0].data.clone().expect("given")
}

#[test]
fn a_file_is_read_and_written_again() {
    let file = Document::read(FILE).expect("is sound").file;
    assert_eq!(file.scenarios[0].given[0].times, Some(2));
    assert_eq!(
        file.scenarios[0].then.answers,
        Some(vec![json!({ "orders": 2 })])
    );
    let again = Document::read(&file.to_yaml()).expect("is sound");
    assert_eq!(again.file, file);
}

#[test]
fn mistakes_say_where_they_are_and_what_to_do() {
    assert!(
        mistake("    whem: []\n").contains("whem"),
        "{}",
        mistake("    whem: []\n")
    );
    for (text, wanted) in [
        (
            "    when: [{ pass: 1s, query: a }]\n",
            "an action is one of",
        ),
        ("    when: [{ }]\n", "an action is one of"),
        ("    when: [{ pass: 1s, data: 1 }]\n", "only an event has"),
        ("    when: [{ event: b }]\n", "no event `b`"),
        ("    when: [{ subject: b, times: 0 }]\n", "`times`"),
        ("    when: [{ subject: b, args: 1 }]\n", "`args`"),
        ("    given: [{ query: b }]\n", "ask it in `when`"),
        ("    when: []\n  - name: a\n", "two of this name"),
    ] {
        let mistake = mistake(text);
        assert!(mistake.contains(wanted), "{text}: {mistake}");
    }
}

#[test]
fn events_that_no_log_takes_are_refused_at_their_place() {
    for (text, wanted) in [
        ("subject: a..b", "subject"),
        ("subject: a, headers: { 'a b': x }", "header \"a b\""),
        ("subject: a, headers: { nats-x: x }", "reserved"),
        ("subject: a, headers: { Nats-Msg-Id: b }, id: c", "differ"),
        (
            "subject: a, headers: { b: \"x\\ny\" }",
            "control characters",
        ),
        ("subject: a, id: \"\"", "its id is empty"),
        ("subject: a, type: \"b\\nc\"", "its type is empty"),
    ] {
        let text = format!("scenarios:\n  - name: a\n    when:\n      - {{ {text} }}\n");
        let document = Document::read(&text).expect("all parts are there");
        let mistake = play::Script::of(&document, 0).expect_err("is refused");
        let line = mistake.place.map(|place| place.line);
        assert_eq!(line, Some(4), "{text}: {mistake}");
        assert!(mistake.message.contains(wanted), "{text}: {mistake}");
    }
}

#[test]
fn the_schema_names_all_parts_of_a_file() {
    let schema = schema().to_string();
    for part in [
        "scenarios",
        "given",
        "when",
        "then",
        "published",
        "no_other_entries",
        "pass",
    ] {
        assert!(schema.contains(&format!("\"{part}\"")), "{part}");
    }
}

#[test]
fn unknown_fields_and_names_are_refused_at_their_place_with_what_was_meant() {
    for (text, wanted) in [
        (
            "    whem: []\n",
            "3:5: unknown field `whem`; did you mean `when`?",
        ),
        (
            "    then: { entires: {} }\n",
            "3:13: unknown field `entires`; did you mean `entries`?",
        ),
        (
            "    on_failure: parc\n",
            "3:17: unknown value `parc`; did you mean `park`?",
        ),
        (
            "    when:\n      - pass: 1s\n      - { pass: 1s, query: a }\n",
            "5:9: scenario `a`: an action is one of",
        ),
        (
            "    when: []\n  - name: a\n",
            "4:5: scenario `a`: there are two of this name",
        ),
    ] {
        let mistake = mistake(text);
        assert!(mistake.starts_with(wanted), "{text}: {mistake}");
    }
    let unknown_event = "events: { placed: { subject: a } }\nscenarios: [{ name: a, when: [{ event: \
                         plcaed }] }]";
    assert!(refused(unknown_event).contains("did you mean `placed`?"));
}

#[test]
fn what_looks_like_a_word_or_an_identifier_is_a_text() {
    for text in [
        "no",
        "yes",
        "on",
        "off",
        "y",
        "n",
        "No",
        "007",
        "1_000",
        "2026-01-01",
        "12:30:00",
        "1.2.3",
        "+1 555",
        "2026-01-01T10:00:00Z",
        "=",
        "null-ish",
        "0o17x",
    ] {
        assert_eq!(data(text), json!(text));
    }
    for (text, wanted) in [
        ("true", json!(true)),
        ("null", json!(null)),
        ("~", json!(null)),
        ("1", json!(1)),
        ("-0.5", json!(-0.5)),
        ("1e3", json!(1000.0)),
        ("18446744073709551615", json!(u64::MAX)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("'null'", json!("null")),
        ("!!str 12", json!("12")),
    ] {
        assert_eq!(data(text), wanted, "{text}");
    }
}

#[test]
fn numbers_that_no_json_has_are_refused_and_not_changed() {
    for number in [
        "18446744073709551616",
        "-9223372036854775809",
        ".nan",
        ".inf",
        "1e999",
    ] {
        let text = format!("    when: [{{ subject: a, data: {number} }}]\n");
        let mistake = mistake(&text);
        assert!(mistake.starts_with("3:"), "{number}: {mistake}");
    }
}

#[test]
fn files_of_all_editors_are_read() {
    let windows = FILE.replace('\n', "\r\n");
    let marked = format!("\u{feff}{FILE}");
    let ended = format!("---\n{FILE}\n...\n");
    let json = serde_json::to_string(&Document::read(FILE).expect("sound").file).expect("JSON");
    let wanted = Document::read(FILE).expect("is sound").file;
    for text in [windows, marked, ended, json] {
        assert_eq!(Document::read(&text).expect("is sound").file, wanted);
    }
}

#[test]
fn anchors_and_merge_keys_share_what_they_name() {
    let file = Document::read(
        "
events:
  placed: &placed { subject: a.placed, data: { n: 1 } }
  paid: { <<: *placed, subject: a.paid }
scenarios:
  - name: a
    when: [{ event: placed }, { event: paid }]
",
    )
    .expect("is sound")
    .file;
    assert_eq!(file.events["paid"].subject.as_deref(), Some("a.paid"));
    assert_eq!(file.events["paid"].data, Some(json!({ "n": 1 })));
}

#[test]
fn files_that_say_nothing_twice_or_too_much_are_refused() {
    let bomb = (0..30).fold("a0: &a0 [x]\n".to_owned(), |text, number| {
        let list = vec![format!("*a{number}"); 9].join(", ");
        format!("{text}a{next}: &a{next} [{list}]\n", next = number + 1)
    });
    let deep = format!("scenarios: {}", "[".repeat(100_000));
    for (text, wanted) in [
        ("", ""),
        ("# nothing\n", ""),
        ("scenarios", ""),
        ("[]", ""),
        ("events: {}", "scenarios"),
        (
            "scenarios: [{ name: a }]\n---\nscenarios: []\n",
            "3:1: only",
        ),
        ("scenarios: [{ name: a, name: b }]", "1:"),
        (
            "scenarios: [{ name: a, then: { entries: { b: 1, b: 2 } } }]",
            "1:",
        ),
        ("scenarios: [{ name: '' }]", "no name"),
        ("scenarios: [{ name: a, when: !include /etc/passwd }]", "1:"),
        (&*format!("{bomb}scenarios: []"), ""),
        (&*deep, "1:"),
        ("scenarios:\n\t- name: a\n", "2:"),
        ("scenarios: [{ name: a, when: *nowhere }]", "1:"),
    ] {
        let mistake = refused(text);
        assert!(mistake.contains(wanted), "{text:.60}: {mistake}");
        assert!(mistake.len() < 1_000, "{mistake}");
    }
}

#[test]
fn null_is_data_and_nothing_is_not() {
    assert_eq!(data("null"), Value::Null);
    let file = Document::read("scenarios: [{ name: a, when: [{ subject: a }] }]").expect("sound");
    assert_eq!(file.scenarios()[0].when[0].data, None);
}

#[test]
fn lines_are_those_of_the_file() {
    let text = "scenarios:\n  - name: a\n    then:\n      entries:\n        b/c:\n          d: 1\n";
    let document = Document::read(text).expect("is sound");
    let line = |path: &[&str]| {
        let path = super::document::path_of(0, path);
        document.place(&path).map(|place| place.line)
    };
    assert_eq!(line(&[]), Some(2));
    assert_eq!(line(&["then", "entries", "b/c"]), Some(5));
    assert_eq!(line(&["then", "entries", "b/c", "d"]), Some(6));
    assert_eq!(
        line(&["then", "entries", "x"]),
        Some(4),
        "the deepest part that there is"
    );
}

fn any_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>(),
        "[-+.0-9eExXoO_:]{0,8}",
        "(no|yes|null|~|true|<<|=|#|- |: |\\? |&a|\\*a|!t|%|@|`|\\||>|\"|'|\\$\\{any\\}|\\$)[ a\n]{0,3}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(Value::from_iter),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What `record` writes is what `test` reads, whatever is in it.
    #[test]
    fn whatever_is_written_is_read_again(value in any_value(), text in any::<String>()) {
        let action = Action {
            subject: Some("a".to_owned()),
            id: Some(text.clone()),
            data: Some(value.clone()),
            ..Action::default()
        };
        let scenario = Scenario {
            name: "a".to_owned(),
            when: vec![action],
            then: Then {
                entries: [(text, value)].into_iter().collect(),
                ..Then::default()
            },
            ..Scenario::default()
        };
        let file = File { scenarios: vec![scenario], ..File::default() };
        let text = file.to_yaml();
        let again = Document::read(&text);
        prop_assert_eq!(again.map(|document| document.file), Ok(file), "{}", text);
    }

    /// Whatever is in a file, it is read or refused.
    #[test]
    fn no_text_breaks_the_reader(
        begin in 0..FILE.len(), length in 0..80_usize, other in any::<String>(),
    ) {
        let end = (begin + length).min(FILE.len());
        let text = format!("{}{other}{}", &FILE[..begin], &FILE[end..]);
        for text in [text, other] {
            if let Err(mistake) = Document::read(&text) {
                prop_assert!(!mistake.message.is_empty());
            }
        }
    }
}
