//! What the program says about itself.

use std::io::Write;

use crate::harness::{Ended, program, run, spawn};

fn said(args: &str) -> String {
    let Ended { status, stdout, stderr } = run(args);
    assert_eq!((status, &stderr), (Some(0), &vec![]), "{args}");
    assert!(!stdout.is_empty(), "{args}");
    stdout.join("\n")
}

#[test]
fn help_names_every_command_and_option() {
    let help = said("--help");
    for command in ["watch", "log", "connections", "diagnose", "explain", "completions", "man"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "no {command} in {help}");
    }
    let filters = "--port --local-port --remote-port --address --pid --comm --netns --cgroup -4 -6 --state";
    let stream = format!("{filters} --duration --count --format --output -o --buffer");
    let diagnose = format!("{filters} --duration --format --fail-on --close-wait-age --port-usage --output --buffer");
    let watch = format!("{filters} --from --duration --close-wait-age --port-usage --ascii --buffer");
    let commands = [
        ("watch", watch),
        ("log", stream.clone()),
        ("connections", format!("{stream} --open")),
        ("diagnose", diagnose),
    ];
    for (command, options) in commands {
        let help = said(&format!("{command} --help"));
        for option in options.split(' ') {
            assert!(help.split([' ', ',', '\n']).any(|word| word == option), "no {option} in {help}");
        }
    }
    assert!(said("-h").len() <= help.len());
}

#[test]
fn the_version_is_the_package_s() {
    let expected = format!("tracer {}", env!("CARGO_PKG_VERSION"));
    assert_eq!((said("--version"), said("-V")), (expected.clone(), expected));
}

#[test]
fn topics_are_listed_and_each_is_explained() {
    let list = said("explain");
    let topics: Vec<&str> =
        list.lines().filter(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next()).collect();
    for needed in ["CLOSE_WAIT", "TIME_WAIT", "close_wait", "time_wait_ports", "never_accepted", "repaired"] {
        assert!(topics.contains(&needed), "no {needed} in {list}");
    }
    for topic in topics {
        let text = said(&format!("explain {topic}"));
        assert!(text.starts_with(topic) && text.lines().count() > 1, "{text}");
    }
}

#[test]
fn completions_are_scripts() {
    for (shell, part) in [("bash", "complete -F _tracer"), ("zsh", "#compdef tracer"), ("fish", "complete -c tracer")] {
        let script = said(&format!("completions {shell}"));
        assert!(script.contains(part) && script.contains("close-wait-age"), "{shell}");
    }
    // Bash at least is everywhere to judge its own.
    let mut bash = std::process::Command::new("bash");
    let mut bash = spawn(bash.arg("-n").stdin(std::process::Stdio::piped()));
    let script = said("completions bash");
    bash.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("written");
    assert!(bash.wait().expect("its end").success());
}

#[test]
fn the_manual_is_roff() {
    for (args, title) in [("man", ".TH TRACER 1"), ("man record", ".TH TRACER-RECORD 1")] {
        let manual = said(args);
        assert!(manual.contains(title), "{}", &manual[..200.min(manual.len())]);
        for section in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH OPTIONS"] {
            assert!(manual.contains(section), "no {section}");
        }
    }
}

#[test]
fn nothing_said_has_colours_where_it_is_no_terminal() {
    for args in ["--help", "log --help", "explain", "--version"] {
        assert!(!said(args).contains('\x1b'), "{args}");
    }
    let mut command = program("log --no-such-option");
    let ended = crate::harness::Tracer::spawn(command.env("CLICOLOR", "1")).ended();
    assert!(!ended.stderr[0].contains('\x1b'));
}
