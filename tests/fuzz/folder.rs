//! The program on a data folder with a damaged file: it starts or ends, says what is wrong, and
//! never gives a wrong answer.

use std::path::{Path, PathBuf};

use fastrand::Rng;
use foldstream::{api, log, state};
use foldstream_tests::fuzz::drive;
use foldstream_tests::stage::{LEDGER, Stage};
use foldstream_tests::wait;
use tokio::runtime::Runtime;

use crate::files::{FILES, Sound, damaged, sound};

/// What became of a start.
enum Start {
    /// It ended, with these words.
    Ended(String),
    /// The deployment is not there, or failed, with these words.
    Failed(String),
    /// The deployment serves: its position and what it holds; or why that can't be read.
    Serves(u64, Result<Vec<api::Entry>, String>),
}

#[test]
fn a_start_on_a_damaged_file_gives_correct_answers_or_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut stage, sound) = sound(folder.path());
    let runtime = Runtime::new().expect("a runtime");
    drive::run("folder", 6, |rng| {
        let sound = rng.choice(&sound).expect("some");
        let (which, bytes) = damage(rng, sound, &stage.host.data_dir());
        let start = runtime.block_on(start(&mut stage, sound));
        let output = stage.host.output();
        stage.host.kill();
        assert!(!output.contains("panicked"), "{}: {output}", FILES[which]);
        match start {
            Start::Ended(words) => {
                assert!(
                    words.contains(FILES[which].rsplit('/').next().expect("a name")),
                    "{}: {words}",
                    FILES[which]
                );
                "ended with words"
            }
            Start::Failed(words) => {
                assert!(words.len() > 20 || which == 0, "{}: {words}", FILES[which]);
                "failed with words"
            }
            Start::Serves(_, Err(words)) => {
                assert!(words.len() > 20, "{}: {words}", FILES[which]);
                "some reads fail with words"
            }
            Start::Serves(position, Ok(entries))
                if sound.folds.get(&position) == Some(&entries) =>
            {
                "right"
            }
            Start::Serves(position, Ok(_)) => {
                let path = folder.path().join("damaged.redb");
                std::fs::write(&path, bytes).expect("our folder can be written");
                let found = if which == 1 {
                    log::check(&path).ok()
                } else {
                    state::check(&path).ok()
                };
                assert_ne!(
                    found,
                    Some(true),
                    "{}: what is served at {position} is wrong",
                    FILES[which]
                );
                "wrong, and a check finds it"
            }
        }
    });
}

/// Puts the sound files in place, but one; which, and its bytes.
fn damage(rng: &mut Rng, sound: &Sound, data: &Path) -> (usize, Vec<u8>) {
    let which = rng.usize(..FILES.len());
    let path = |file: &str| -> PathBuf { data.join(file) };
    for (file, bytes) in FILES.iter().zip(&sound.files) {
        std::fs::write(path(file), bytes).expect("the host is down");
    }
    let bytes = damaged(rng, &sound.files[which]);
    std::fs::write(path(FILES[which]), &bytes).expect("the host is down");
    (which, bytes)
}

async fn start(stage: &mut Stage, sound: &Sound) -> Start {
    if !stage.host.try_restart().await {
        return Start::Ended(stage.host.output());
    }
    let last = sound.events.len() as u64;
    let client = stage.client().clone();
    let shown = wait::until("the ledger to serve or to say why not", || async {
        let answer = client.get(&format!("/v1/deployments/{LEDGER}")).await;
        if answer.status == 404 {
            return Some(Err(answer.text()));
        }
        if answer.status != 200 {
            return None;
        }
        let shown: api::Deployment = answer.json();
        match &shown.failure {
            Some(failure) => Some(Err(format!("{failure:?}"))),
            None => (shown.state == api::DeploymentState::Live && shown.position >= last)
                .then_some(Ok(shown.position)),
        }
    })
    .await;
    let position = match shown {
        Ok(position) => position,
        Err(words) => return Start::Failed(words),
    };
    let answer = client
        .get(&format!("/v1/deployments/{LEDGER}/entries?limit=10000"))
        .await;
    if answer.status != 200 {
        return Start::Serves(position, Err(answer.text()));
    }
    Start::Serves(position, Ok(answer.json::<api::EntryPage>().entries))
}
