//! What has to be true once nothing breaks any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Instant;

use foldstream::api::{
    DeploymentState, EntryPage, Generation, GenerationList, GenerationStatus, Strategy, WorkState,
};
use foldstream_tests::{cli, host, wait};
use reqwest::Method;

use crate::oracle::{Shape, difference};
use crate::watchers::Seen;
use crate::world::{LEDGER, TALLY, World};
use crate::{errands, handlers, leaky, operator};

/// Checks a round at rest: nothing is lost, doubled or left over, and each file is sound.
pub async fn check(world: &World, watchers: &[&Mutex<Seen>]) {
    operator::resume(world, LEDGER).await;
    let last = world.oracle.through();
    operator::leave_broken(world, LEDGER, last).await;
    let shown = world
        .show_when(
            LEDGER,
            &format!("be live at {last} with nothing under way"),
            |shown| {
                shown.candidate.is_none()
                    && shown.state == DeploymentState::Live
                    && shown.position >= last
            },
        )
        .await;
    assert!(shown.failure.is_none(), "{shown:#?}");
    world
        .show_when(TALLY, &format!("be live at {last}"), |shown| {
            shown.position >= last
        })
        .await;
    generations_equal_the_fold(world, last).await;
    the_neighbour_equals_the_fold(world, last).await;
    watchers_have_seen_all(world, watchers, last).await;
    handlers::check(world).await;
    errands::check(world).await;
    leaky::check(world).await;
    a_refold_gives_the_same(world, LEDGER).await;
    a_refold_gives_the_same(world, errands::NAME).await;
    only_known_files_are_left(world).await;
    files_are_sound(world).await;
}

/// The active generation and the one before it, which follows: both have the whole fold.
async fn generations_equal_the_fold(world: &World, last: u64) {
    let begin = Instant::now();
    while !known_generations_equal_the_fold(world, last).await {
        assert!(
            begin.elapsed() < wait::DEADLINE,
            "generations are retired without an end"
        );
    }
}

/// The same of those that are listed; false if one of them was retired meanwhile.
async fn known_generations_equal_the_fold(world: &World, last: u64) -> bool {
    let list: GenerationList = world
        .ask(
            Method::GET,
            &format!("/v1/deployments/{LEDGER}/generations"),
        )
        .await
        .expect(200)
        .json();
    let active: Vec<_> = list
        .generations
        .iter()
        .filter(|generation| generation.status == GenerationStatus::Active)
        .collect();
    assert_eq!(
        active.len(),
        1,
        "one generation serves: {:#?}",
        list.generations
    );
    // Generations that inherited a state share its file, and one of them has it now.
    let followed = list.generations.iter().filter(|generation| {
        matches!(
            generation.status,
            GenerationStatus::Active | GenerationStatus::Previous
        )
    });
    let mut files: BTreeMap<u64, bool> = BTreeMap::new();
    for generation in followed {
        let equals = generation_equals_the_fold(world, generation, last).await;
        if !equals && generation.status == GenerationStatus::Active {
            return false;
        }
        *files.entry(generation.state_file).or_default() |= equals;
    }
    files.into_values().all(|equals| equals)
}

/// The same of one generation; false if it has no state, or none any more.
async fn generation_equals_the_fold(world: &World, generation: &Generation, last: u64) -> bool {
    let number = generation.number;
    let path = format!(
        "/v1/deployments/{LEDGER}/entries?limit=1000&generation={number}&at-least={last}&timeout=30s"
    );
    let answer = world.ask(Method::GET, &path).await;
    if answer.status == 409 {
        return false;
    }
    let page: EntryPage = answer.expect(200).json();
    let shape = if generation.module.state_version == 1 {
        Shape::First
    } else {
        Shape::Next
    };
    let differs = difference(&world.oracle.entries(page.position, shape), &page.entries);
    assert!(
        differs.is_none(),
        "generation {number} is not the fold: {}",
        differs.unwrap_or_default()
    );
    true
}

async fn the_neighbour_equals_the_fold(world: &World, last: u64) {
    let path = format!(
        "/v1/deployments/{TALLY}/entries?limit=1000&prefix=tally/&at-least={last}&timeout=30s"
    );
    let page: EntryPage = world.ask(Method::GET, &path).await.expect(200).json();
    for entry in &page.entries {
        let customer = entry.key.trim_start_matches("tally/");
        let wanted = world.oracle.count_of(customer, page.position);
        assert_eq!(
            entry.value.as_u64(),
            Some(wanted),
            "{customer} is not the fold at {}",
            page.position
        );
    }
    let sum: u64 = page
        .entries
        .iter()
        .filter_map(|entry| entry.value.as_u64())
        .sum();
    assert_eq!(
        sum,
        world.oracle.count(page.position),
        "the neighbour has other keys than the fold"
    );
}

async fn watchers_have_seen_all(world: &World, watchers: &[&Mutex<Seen>], last: u64) {
    let begin = Instant::now();
    for (number, watcher) in watchers.iter().enumerate() {
        loop {
            let differs = watcher
                .lock()
                .expect("no holder panics")
                .differs(world, world.oracle.last(last));
            let Some(differs) = differs else { break };
            assert!(
                begin.elapsed() < wait::DEADLINE,
                "watcher {number} has not the fold: {differs}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

async fn a_refold_gives_the_same(world: &World, name: &str) {
    let path = format!("/v1/deployments/{name}/verification");
    world.ask(Method::POST, &path).await.expect(200);
    let begin = Instant::now();
    loop {
        let answer = world.ask(Method::GET, &path).await.expect(200);
        let verification: foldstream::api::Verification = answer.json();
        if verification.state == WorkState::Done {
            assert_eq!(verification.equal, Some(true), "{verification:#?}");
            return;
        }
        let is_under_way = matches!(verification.state, WorkState::Queued | WorkState::Running);
        // On a busy machine both may not meet within the time for which applying is held, and it
        // says so.
        let asks_again = verification.state == WorkState::Failed
            && verification.message.ends_with("verify again");
        assert!(
            (is_under_way || asks_again) && begin.elapsed() < 2 * wait::DEADLINE,
            "{verification:#?}"
        );
        if asks_again {
            world.ask(Method::POST, &path).await.expect(200);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// No file is left that no generation knows of.
async fn only_known_files_are_left(world: &World) {
    for name in [
        LEDGER,
        TALLY,
        handlers::TO_STREAM.name,
        handlers::TO_LOG.name,
        errands::NAME,
    ] {
        let list: GenerationList = world
            .ask(Method::GET, &format!("/v1/deployments/{name}/generations"))
            .await
            .expect(200)
            .json();
        // Code that inherited a state was no candidate, and replaces none that has failed.
        let candidates = list
            .generations
            .iter()
            .filter(|generation| generation.strategy != Strategy::Inherit);
        let newest = candidates.map(|generation| generation.number).max();
        let known: BTreeSet<String> = list
            .generations
            .iter()
            // The last candidate keeps its file if it failed, until it is resumed or
            // replaced by another.
            .filter(|generation| match generation.status {
                GenerationStatus::Retired => false,
                GenerationStatus::Failed => Some(generation.number) == newest,
                _ => true,
            })
            .map(|generation| format!("{}.redb", generation.state_file))
            .collect();
        let folder = world.host.lock().await.data_dir().join("state").join(name);
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .expect("the folder is there")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        assert!(
            files.is_subset(&known),
            "{name} has files that nobody knows: {files:?} of {known:?}"
        );
    }
}

/// Stopped in good order, each file is read by the program's own doctor.
async fn files_are_sound(world: &World) {
    let mut host = world.host.lock().await;
    assert_eq!(host.stop().code(), Some(0));
    let data = host.data_dir();
    let output = cli::finish(
        host::foldstream().arg("doctor").arg("--data").arg(data),
        None,
    );
    assert_eq!(
        output.code, 0,
        "the doctor finds: {}{}",
        output.stdout, output.stderr
    );
}
