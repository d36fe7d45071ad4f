//! What stands under `deploy/` works as it says.

use foldstream_tests::{cli, root};

#[test]
fn the_example_configuration_is_sound() {
    let file = root().join("deploy/foldstream.toml").display().to_string();
    cli::run(&["config", "check", "--config", &file]).expect(0);
}

#[test]
fn the_unit_starts_the_host_with_arguments_that_it_takes() {
    let unit = std::fs::read_to_string(root().join("deploy/foldstream.service")).expect("it is there");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("it starts something");
    let arguments: Vec<&str> = start.split(' ').skip(1).collect();
    assert_eq!(arguments[0], "serve");
    // A file that is not there is the only thing wrong with it.
    let missing = arguments.iter().map(|word| word.replace("/etc/foldstream", "/nonexistent")).collect::<Vec<_>>();
    let output = cli::run(&missing.iter().map(String::as_str).collect::<Vec<_>>()).expect(2);
    assert!(output.stderr.contains("/nonexistent/foldstream.toml"), "{output:?}");
}

#[test]
fn the_unit_installs_what_its_user_may_read() {
    let unit = std::fs::read_to_string(root().join("deploy/foldstream.service")).expect("it is there");
    assert!(unit.contains("\nDynamicUser=yes\n"), "the user owns nothing under /etc");
    let installed = unit.lines().filter_map(|line| line.strip_prefix("#   install "));
    let mut count = 0;
    for words in installed {
        let mode = words.split("-m ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a mode is given");
        let mode = u32::from_str_radix(mode, 8).expect("a mode is octal");
        assert_eq!(mode & 0o004, 0o004, "others may not read it: {words}");
        count += 1;
    }
    assert_eq!(count, 3);
}
