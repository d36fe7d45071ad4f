//! Named steps at which a test kills the process: what is durable there must be enough to go on or to go back.

/// Every step, in the order in which they come.
pub const STEPS: [&str; 17] = [
    "deploy-module-stored",
    "deploy-recorded",
    "inherit-recorded",
    "inherit-put-back",
    "hand-back-recorded",
    "migrate-half",
    "migrate-made",
    "build-started",
    "build-ready",
    "cut-over-held",
    "cut-over-recorded",
    "cut-over-released",
    "retire-recorded",
    "prune-recorded",
    "partial-applied",
    "delete-recorded",
    "skip-recorded",
];

/// Ends the process here, as `kill -9` would, when the variable FOLDSTREAM_DIE_AT names this step. Only in builds with
/// debug assertions; otherwise it is nothing.
pub(crate) fn reached(step: &'static str) {
    debug_assert!(STEPS.contains(&step), "{step} is a step");
    #[cfg(debug_assertions)]
    if std::env::var_os("FOLDSTREAM_DIE_AT").is_some_and(|wanted| wanted == step) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // Until the signal arrives nothing more may happen.
        loop {
            std::thread::park();
        }
    }
}
