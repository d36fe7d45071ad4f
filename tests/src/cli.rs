//! The command line as a person or a script uses it: arguments in, outputs and exit code out.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::host::Host;

/// What a command did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Messages.
    pub stderr: String,
}

impl Output {
    /// Itself, once the exit code is checked.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!(
                "not JSON: {error}: {}\nstderr: {}",
                self.stdout, self.stderr
            )
        })
    }

    /// Standard output as one JSON value per line.
    pub fn lines(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).expect("each line is JSON"))
            .collect()
    }
}

/// Runs the program with arguments alone.
pub fn run(arguments: &[&str]) -> Output {
    finish(crate::host::foldstream().args(arguments), None)
}

/// Runs it in a folder.
pub fn run_in(folder: &Path, arguments: &[&str]) -> Output {
    // Whatever may run on this machine, nothing answers there.
    let nobody = ("FOLDSTREAM_URL", "http://127.0.0.1:1");
    finish(
        crate::host::foldstream()
            .args(arguments)
            .env(nobody.0, nobody.1)
            .current_dir(folder),
        None,
    )
}

/// Runs it against a host.
pub fn on(host: &Host, arguments: &[&str]) -> Output {
    finish(
        crate::host::foldstream()
            .args(["--url", host.url()])
            .args(arguments),
        None,
    )
}

/// Runs it against a host, with something on standard input.
pub fn on_with_input(host: &Host, arguments: &[&str], input: &str) -> Output {
    finish(
        crate::host::foldstream()
            .args(["--url", host.url()])
            .args(arguments),
        Some(input),
    )
}

/// Runs a command to its end.
pub fn finish(command: &mut Command, input: Option<&str>) -> Output {
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    if let Some(input) = input {
        let mut stdin = child.stdin.take().expect("piped above");
        // A command that refuses its arguments does not read its input.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .expect("our own child can be waited for");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("outputs are text"),
        stderr: String::from_utf8(output.stderr).expect("outputs are text"),
    }
}
