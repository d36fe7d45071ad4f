use super::*;
use crate::overview::Parked;
use crate::progress::DeploymentState;
use crate::source::{self, SourceState, Status};
use crate::state::catalogue::{ErrorPolicy, ModuleInfo, ModuleKind, ModuleLimits, OnFailure};

fn deployment(name: &str) -> Deployment {
    let source_status = Status {
        state: SourceState::Reading,
        reconnects: 3,
        passed_over: 2,
        repaired: 1,
        ..source::initial_status()
    };
    Deployment {
        name: name.to_owned(),
        generation: 2,
        state: DeploymentState::Live,
        source: "events".to_owned(),
        stream: None,
        source_status,
        position: 9,
        checkpoint: 8,
        head: Some(10),
        lag_events: Some(1),
        lag_seconds: Some(0.5),
        missing_events: 0,
        events_applied: 9,
        begun: true,
        rate: 1.0,
        remaining_seconds: None,
        repair_percent: None,
        state_bytes: 7,
        memtable_bytes: 0,
        pinned_bytes: 0,
        file_bytes: 4_096,
        guest_memory_bytes: 0,
        instances: 0,
        deployed_at: String::new(),
        reason: String::new(),
        failure: None,
        skipped: 0,
        on_failure: OnFailure::Stop,
        failure_events: None,
        checks_events_after: None,
        parked: Parked::default(),
        outbox: None,
        inbox: None,
        lanes: None,
        timers: None,
        skips: Vec::new(),
        sagas: Vec::new(),
        module: module(),
        candidate: None,
        previous: None,
    }
}

fn module() -> ModuleInfo {
    ModuleInfo {
        digest: "ab".to_owned(),
        size: 1,
        kind: ModuleKind::Projection,
        name: "totals".to_owned(),
        description: String::new(),
        subjects: Vec::new(),
        wants_headers: false,
        key_rule: "none".to_owned(),
        state_version: 4,
        error_policy: ErrorPolicy::default(),
        limits: ModuleLimits::default(),
        queries: Vec::new(),
        imports: Vec::new(),
        migrates: false,
        publishes: Vec::new(),
        inbox: None,
        sets_timers: false,
        events: Vec::new(),
    }
}

fn page(metrics: &Metrics, deployments: &[Deployment]) -> String {
    String::from_utf8(metrics.page(deployments, &[], &Usage::default(), &[])).expect("text")
}

#[test]
fn page_tells_how_a_deployment_is() {
    let metrics = Metrics::new();
    metrics.deployment("orders").events_applied.inc_by(5);
    let guard = metrics.watch();
    metrics.request("/v1/deployments", "GET", "2xx", Duration::from_millis(2));
    let text = page(&metrics, &[deployment("orders")]);
    for line in [
        r#"foldstream_events_total{deployment="orders",outcome="applied"} 5"#,
        r#"foldstream_lag_seconds{deployment="orders"} 0.5"#,
        r#"foldstream_position{deployment="orders"} 9"#,
        r#"foldstream_deployment_state{deployment="orders",state="live"} 1"#,
        r#"foldstream_deployment_state{deployment="orders",state="failed"} 0"#,
        r#"foldstream_source_state{deployment="orders",source="events",state="reading"} 1"#,
        r#"foldstream_source_reconnects_total{deployment="orders",source="events"} 3"#,
        r#"foldstream_source_passed_over_total{deployment="orders",source="events"} 2"#,
        r#"foldstream_source_repaired_total{deployment="orders",source="events"} 1"#,
        r#"foldstream_module_info{deployment="orders",digest="ab",name="totals",state_version="4"} 1"#,
        r#"foldstream_watches_open 1"#,
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in:\n{text}"
        );
    }
    assert!(
        text.contains("foldstream_build_info{contract=")
            && text.contains("process_resident_memory_bytes")
    );
    drop(guard);
    let again = page(&metrics, &[deployment("orders")]);
    assert!(again.contains("\nfoldstream_watches_open 0"));
    assert!(
        again.contains(
            r#"foldstream_source_reconnects_total{deployment="orders",source="events"} 3"#
        )
    );
}

#[test]
fn what_nobody_knows_is_no_number() {
    let metrics = Metrics::new();
    drop(metrics.deployment("orders"));
    let mut unknown = deployment("orders");
    (unknown.head, unknown.lag_events, unknown.lag_seconds) = (None, None, None);
    let away = Reachable {
        source: "spare".to_owned(),
        stream: "S".to_owned(),
        is_reachable: Some(false),
    };
    let text =
        String::from_utf8(metrics.page(&[unknown], &[away], &Usage::default(), &[])).expect("text");
    for line in [
        r#"foldstream_head{deployment="orders"} NaN"#,
        r#"foldstream_lag_events{deployment="orders"} NaN"#,
        r#"foldstream_lag_seconds{deployment="orders"} NaN"#,
        r#"foldstream_source_last_heard_timestamp_seconds{deployment="orders",source="events"} NaN"#,
        r#"foldstream_source_reachable{source="spare",stream="S"} 0"#,
        r#"foldstream_cut_overs_total{deployment="orders",kind="rollback",outcome="missed"} 0"#,
        r#"foldstream_events_total{deployment="orders",outcome="failed"} 0"#,
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in:\n{text}"
        );
    }
}

#[test]
fn series_of_a_deleted_deployment_go_away() {
    let metrics = Metrics::new();
    for name in ["orders", "other"] {
        let handles = metrics.deployment(name);
        handles.events_applied.inc();
        handles.apply_seconds.observe(0.1);
    }
    assert!(page(&metrics, &[deployment("orders"), deployment("other")]).contains("\"orders\""));
    metrics.forget("orders");
    let text = page(&metrics, &[deployment("other")]);
    assert!(
        !text.contains("\"orders\"") && text.contains("\"other\""),
        "{text}"
    );
}

#[test]
fn the_disk_is_reported_for_each_deployment_and_in_all() {
    let metrics = Metrics::new();
    let deployments = [("orders".to_owned(), 8_192)].into();
    let usage = Usage {
        deployments,
        folder_bytes: 12_288,
        free_bytes: Some(1 << 30),
        disk_bytes: None,
    };
    let text = String::from_utf8(metrics.page(&[], &[], &usage, &[])).expect("text");
    for line in [
        r#"foldstream_deployment_disk_bytes{deployment="orders"} 8192"#,
        "foldstream_data_folder_bytes 12288",
        "foldstream_disk_free_bytes 1073741824",
        "foldstream_disk_bytes NaN",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in:\n{text}"
        );
    }
    let gone = String::from_utf8(metrics.page(&[], &[], &Usage::default(), &[])).expect("text");
    assert!(
        !gone.contains("foldstream_deployment_disk_bytes{"),
        "{gone}"
    );
}

#[test]
fn parts_of_the_memory_budget_are_reported_with_what_they_were_refused() {
    let metrics = Metrics::new();
    let part = |name, used_bytes, refused| PartUsage {
        name,
        used_bytes,
        limit_bytes: 100,
        refused,
    };
    let page = |parts: &[PartUsage]| {
        String::from_utf8(metrics.page(&[], &[], &Usage::default(), parts)).expect("text")
    };
    let text = page(&[part("queries", Some(7), 0), part("caches", None, 0)]);
    for line in [
        r#"foldstream_memory_used_bytes{part="queries"} 7"#,
        r#"foldstream_memory_used_bytes{part="caches"} NaN"#,
        r#"foldstream_memory_limit_bytes{part="queries"} 100"#,
        // There before the first refusal, so that the alert sees it rise.
        r#"foldstream_memory_refused_total{part="queries"} 0"#,
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    for _ in 0..2 {
        let text = page(&[part("queries", Some(0), 3)]);
        assert!(
            text.contains(r#"foldstream_memory_refused_total{part="queries"} 3"#),
            "{text}"
        );
    }
}
