//! Claims about files of scenarios. What modules do is shown by the suite.

use serde_json::json;

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
    let scenario = format!("scenarios:\n  - name: a\n{text}");
    File::parse(&scenario)
        .expect_err("has a mistake")
        .to_string()
}

#[test]
fn a_file_is_read_and_written_again() {
    let file = File::parse(FILE).expect("is sound");
    assert_eq!(file.scenarios[0].given[0].times, Some(2));
    assert_eq!(
        file.scenarios[0].then.answers,
        Some(vec![json!({ "orders": 2 })])
    );
    assert_eq!(File::parse(&file.to_yaml()).expect("is sound"), file);
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
        (
            "    when: [{ pass: 1s, data: 1 }]\n",
            "no fields of an event",
        ),
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
