//! The files under `deploy/` work as they say.

use foldstream_tests::{cli, root};

#[test]
fn the_example_configuration_is_sound() {
    let file = root().join("deploy/foldstream.toml").display().to_string();
    cli::run(&["config", "check", "--config", &file]).expect(0);
}

#[test]
fn the_unit_starts_the_host_with_arguments_that_it_takes() {
    let unit =
        std::fs::read_to_string(root().join("deploy/foldstream.service")).expect("it is there");
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .expect("it starts something");
    let arguments: Vec<&str> = start.split(' ').skip(1).collect();
    assert_eq!(arguments[0], "serve");
    // A file that is not there is the only thing wrong with it.
    let missing = arguments
        .iter()
        .map(|word| word.replace("/etc/foldstream", "/nonexistent"))
        .collect::<Vec<_>>();
    let output = cli::run(&missing.iter().map(String::as_str).collect::<Vec<_>>()).expect(2);
    assert!(
        output.stderr.contains("/nonexistent/foldstream.toml"),
        "{output:?}"
    );
}

#[test]
fn the_unit_has_settings_that_systemd_knows() {
    let folder = tempfile::tempdir().expect("a folder");
    let unit =
        std::fs::read_to_string(root().join("deploy/foldstream.service")).expect("it is there");
    // A start after a wrong configuration, or next to another host, would fail in the same way.
    assert!(unit.contains("\nRestartPreventExitStatus=2 4\n"));
    assert!(unit.contains("\nMemoryMax=") && unit.contains("\nTasksMax="));
    // What keeps a host that was taken over from the rest of the machine.
    for setting in [
        "CapabilityBoundingSet=",
        "DynamicUser=yes",
        "KeyringMode=private",
        "LimitCORE=0",
        "LockPersonality=yes",
        "NoNewPrivileges=yes",
        "OOMPolicy=continue",
        "PrivateDevices=yes",
        "PrivateIPC=yes",
        "PrivateTmp=yes",
        "ProtectHome=yes",
        "ProtectProc=invisible",
        "ProtectSystem=strict",
        "RemoveIPC=yes",
        "RestrictNamespaces=yes",
        "RestrictSUIDSGID=yes",
        "StateDirectoryMode=0700",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "UMask=0077",
    ] {
        assert!(unit.lines().any(|line| line == setting), "{setting}");
    }
    // The program need not be installed here.
    let file = folder.path().join("foldstream.service");
    let program = foldstream_tests::foldstream().display().to_string();
    std::fs::write(&file, unit.replace("/usr/local/bin/foldstream", &program))
        .expect("our folder can be written");
    let mut verify = std::process::Command::new("systemd-analyze");
    let Ok(output) = verify.args(["verify", "--man=no"]).arg(&file).output() else {
        println!("skipped: systemd-analyze is not installed");
        return;
    };
    let words = String::from_utf8_lossy(&output.stderr);
    // Other units of the machine are not our concern.
    let about_ours: Vec<_> = words
        .lines()
        .filter(|line| line.contains("foldstream.service"))
        .collect();
    assert!(output.status.success() && about_ours.is_empty(), "{words}");
}

#[test]
fn the_unit_installs_what_its_user_may_read() {
    let unit =
        std::fs::read_to_string(root().join("deploy/foldstream.service")).expect("it is there");
    assert!(
        unit.contains("\nDynamicUser=yes\n"),
        "the user owns nothing under /etc"
    );
    let installed = unit
        .lines()
        .filter_map(|line| line.strip_prefix("#   install "));
    let mut count = 0;
    for words in installed {
        let mode = words
            .split("-m ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .expect("a mode is given");
        let mode = u32::from_str_radix(mode, 8).expect("a mode is octal");
        assert_eq!(mode & 0o004, 0o004, "others may not read it: {words}");
        count += 1;
    }
    assert_eq!(count, 3);
}
