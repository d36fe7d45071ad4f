//! Valid WebAssembly that nobody has thought of, drawn by the program in `tests/smith`.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The running program.
#[derive(Debug)]
pub struct Smith {
    program: Child,
    seeds: Option<ChildStdin>,
    drawn: ChildStdout,
}

/// What was drawn.
#[derive(Clone, Debug)]
pub enum Drawn {
    /// A component.
    Component(Vec<u8>),
    /// A core module.
    Module(Vec<u8>),
}

impl Smith {
    /// Builds and starts it.
    ///
    /// # Panics
    ///
    /// When it cannot be built.
    pub fn start() -> Self {
        let (folder, target) = (crate::root().join("tests/smith"), crate::built());
        let target = target.join("smith");
        let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "--quiet", "--release", "--locked"])
            .arg("--manifest-path")
            .arg(folder.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status();
        assert!(status.expect("cargo runs").success(), "tests/smith builds");
        let mut program = Command::new(target.join("release/smith"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("what was just built starts");
        let (seeds, drawn) = (program.stdin.take(), program.stdout.take());
        Self {
            program,
            seeds,
            drawn: drawn.expect("it is piped"),
        }
    }

    /// What a seed gives; none if it gives nothing.
    pub fn draw(&mut self, seed: u64) -> Option<Drawn> {
        let seeds = self.seeds.as_mut().expect("it is piped");
        let sent = seeds.write_all(&seed.to_le_bytes());
        sent.expect("it reads as long as it runs");
        let mut head = [0; 5];
        let answered = self.drawn.read_exact(&mut head);
        answered.expect("it answers every seed");
        let [kind, length @ ..] = head;
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        let answered = self.drawn.read_exact(&mut bytes);
        answered.expect("it answers every seed");
        match (kind, bytes.is_empty()) {
            (_, true) => None,
            (0, _) => Some(Drawn::Component(bytes)),
            _ => Some(Drawn::Module(bytes)),
        }
    }
}

impl Drop for Smith {
    fn drop(&mut self) {
        // It ends with its input.
        self.seeds = None;
        let _ = self.program.wait();
    }
}
