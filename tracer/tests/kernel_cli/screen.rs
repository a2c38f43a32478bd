//! `tracer watch` on a terminal (tmux's): what somebody sees who leaves it open, and that the terminal is given back.

use std::{
    cell::OnceCell,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tracer::{
    screen::{Abilities, About, Colours, State},
    terminal::Terminal,
};

use crate::harness::{PATIENCE, eventually, in_new_namespace, program, run, scratch, spawn};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tracer");

/// What the test's own program is told to be, on a terminal.
const PANICS: &str = "TRACER_TEST_PANICS";

thread_local! {
    static FOLDER: OnceCell<&'static Path> = const { OnceCell::new() };
}

/// A folder of this test, whose thread is its own.
fn folder() -> &'static Path {
    FOLDER.with(|folder| *folder.get_or_init(|| scratch(None)))
}

/// A terminal of 80 columns and 24 lines. What runs in it ends with this value.
struct Screen {
    /// The name of its tmux server.
    server: String,
}

impl Screen {
    /// Runs a shell command. Its terminal stays when it has ended.
    fn run(command: &str) -> Self {
        static SERVERS: AtomicUsize = AtomicUsize::new(0);
        let screen = Self { server: SERVERS.fetch_add(1, Ordering::Relaxed).to_string() };
        let command = format!("{command}; echo \"status $?\"; stty -a; exec sleep 600");
        screen.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", &command]);
        screen
    }

    /// The tracer, looking at this namespace.
    fn tracer(args: &str) -> Self {
        Self::run(&format!("LC_ALL=C.UTF-8 {PROGRAM} {args} --netns self --buffer 1M"))
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = self.command();
        command.args(args);
        let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
        let output = child.wait_with_output().expect("tmux");
        assert!(output.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        // Nothing of it stays on the machine: the folder goes with the test's mount namespace.
        command.env("TMUX_TMPDIR", folder()).env_remove("TMUX").env("SHELL", "/bin/sh");
        command.args(["-u", "-L", &self.server]);
        command
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn seen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until all these are seen at once.
    fn shows(&self, parts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.seen();
            if parts.iter().all(|part| seen.contains(part)) {
                return seen;
            }
            assert!(Instant::now() < deadline, "not {parts:?} within {PATIENCE:?}, but:\n{seen}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The program has ended in order, and the terminal is as it was.
    fn is_given_back(&self) -> String {
        let seen = self.shows(&["status 0", " transitions, dropped ", "icanon"]);
        for mode in ["icanon", "echo", "isig", "opost"] {
            assert!(seen.split([' ', ';', '\n']).any(|word| word == mode), "no {mode} in:\n{seen}");
        }
        let modes = self.tmux(&["display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}"]);
        assert_eq!(modes.trim(), "0 0 1", "alternate screen, mouse, cursor");
        seen
    }

    /// The tracer that runs in it.
    fn process(&self) -> Pid {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let mut found = None;
        eventually("a tracer in the terminal", || {
            let path = format!("/proc/{0}/task/{0}/children", shell.trim());
            let children = std::fs::read_to_string(path).unwrap_or_default();
            let is_tracer =
                |pid: &&str| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(PROGRAM));
            found = children.split_whitespace().find(is_tracer).and_then(|pid| pid.parse().ok());
            found.is_some()
        });
        Pid::from_raw(found.expect("a tracer"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = spawn(self.command().arg("kill-server").stderr(Stdio::null())).wait();
    }
}

/// The leaking server of the examples, which ends with this value.
struct LeakyServer {
    child: Child,
    pid: u32,
    port: String,
}

impl LeakyServer {
    fn start(args: &str) -> Self {
        let mut command = Command::new(example());
        command.args(args.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = spawn(&mut command);
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let value = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)).expect("a value");
        Self { pid: child.id(), port: value("port=").to_owned(), child }
    }
}

impl Drop for LeakyServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the example is; `cargo test --test` alone does not build it.
fn example() -> PathBuf {
    let folder = Path::new(PROGRAM).parent().expect("a folder");
    let path = folder.join("examples/leaky_server");
    if !path.exists() {
        let profile = if folder.ends_with("release") { "release" } else { "dev" };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "tracer", "--example", "leaky_server", "--profile", profile]);
        let built = spawn(cargo.current_dir(env!("CARGO_MANIFEST_DIR"))).wait().expect("cargo");
        assert!(built.success() && path.exists(), "no {}", path.display());
    }
    path
}

#[test]
fn a_leak_is_seen_and_the_keys_lead_to_its_sockets() {
    in_new_namespace(|| {
        let server = LeakyServer::start("--rate 10 --count 60 --hold 120");
        let screen = Screen::tracer("watch --close-wait-age 1s");
        let name = format!("leaky_server[{}]", server.pid);
        let local = format!("127.0.0.1:{}", server.port);
        let leak = format!("WARNING   {name} leaves ");
        screen.shows(&["1 Overview", "--netns self", "CLOSE_WAIT", "FINDINGS", &leak]);

        screen.press(&["2"]);
        screen.shows(&[&format!("▶{leak}"), "close_wait   oldest "]);
        screen.press(&["Enter"]);
        let found = screen.shows(&["close_wait: eof_read_not_closed", "forgets close()", "AGE", "LOCAL", &local]);
        assert!(found.contains(&name), "{found}");
        screen.press(&["G"]);
        screen.shows(&["more", &local]);
        screen.press(&["q", "3"]);
        screen.shows(&["IN STATE", "CLOSE_WAIT", &name]);

        screen.press(&["/", "n", "o", "s", "u", "c", "h"]);
        screen.shows(&["none with these words", "/nosuch"]);
        screen.press(&["C-u"]);
        screen.press(&["c", "l", "o", "s", "e", "_", "w", "Enter"]);
        let rows = screen.shows(&["/close_w", "▶"]);
        assert!(!rows.contains("FIN_WAIT2"), "{rows}");
        screen.press(&["j", "Enter"]);
        screen.shows(&["ends      127.0.0.1:", "cookie", &format!("process   {name}"), "at least", " now"]);
        screen.press(&["Escape"]);
        // Escape and a key at once would be Alt and that key.
        screen.shows(&["IN STATE"]);
        screen.press(&["5"]);
        screen.shows(&["ACCEPT/s", &local, &name, "/128"]);
        screen.press(&["4"]);
        screen.shows(&["DESTINATION", &local, "LEFT"]);
        screen.press(&["6"]);
        screen.shows(&["→ NEW STATE", "→ CLOSE_WAIT"]);
        screen.press(&["?"]);
        screen.shows(&["VIEWS", "LISTS"]);
        screen.press(&["q", "Space"]);
        screen.shows(&["PAUSED"]);
        screen.press(&["Space", "1"]);
        for size in [["200", "60"], ["30", "8"], ["10", "2"], ["80", "24"]] {
            screen.tmux(&["resize-window", "-x", size[0], "-y", size[1]]);
        }
        screen.shows(&["PER SECOND", "q quit"]);
        screen.press(&["q"]);
        screen.is_given_back();
    });
}

#[test]
fn what_is_shown_is_written_to_a_new_file() {
    in_new_namespace(|| {
        let server = LeakyServer::start("--rate 50 --count 30 --hold 120");
        let folder = folder().join("exports");
        std::fs::create_dir(&folder).expect("a folder");
        let command = format!("cd {} && LC_ALL=C.UTF-8 {PROGRAM} watch --netns self --buffer 1M", folder.display());
        let screen = Screen::run(&command);
        screen.shows(&["PER SECOND"]);
        screen.press(&["3"]);
        screen.shows(&["CLOSE_WAIT", &format!("leaky_server[{}]", server.pid)]);
        screen.press(&["e"]);
        screen.shows(&["j JSON lines"]);
        screen.press(&["j"]);
        screen.shows(&["row(s) written to tracer-connections-"]);
        let files: Vec<PathBuf> =
            std::fs::read_dir(&folder).expect("a folder").map(|f| f.expect("a file").path()).collect();
        let text = std::fs::read_to_string(&files[0]).expect("text");
        let record: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!((files.len(), &record["v"]), (1, &serde_json::json!(1)));
        assert!(text.contains(&format!("\"pid\":{}", server.pid)), "{text}");
    });
}

#[test]
fn neither_colours_nor_utf8_where_the_environment_has_none() {
    in_new_namespace(|| {
        let tracer = |environment: &str| {
            let screen = Screen::run(&format!("{environment} {PROGRAM} watch --netns self --buffer 1M"));
            screen.shows(&["PER SECOND", "q quit"]);
            screen.tmux(&["capture-pane", "-p", "-e"])
        };
        let plain = tracer("LC_ALL=C NO_COLOR=1");
        assert!(plain.is_ascii(), "{plain}");
        // The terminal's own colours are none.
        let plain = plain.replace("\x1b[39m", "").replace("\x1b[49m", "");
        for colour in ["\x1b[3", "\x1b[4", "\x1b[9", "\x1b[10", ";3", ";4"] {
            assert!(!plain.contains(colour), "{plain:?}");
        }
        assert!(plain.contains("\x1b[7m"), "{plain:?}");
        let rich = tracer("LC_ALL=C.UTF-8 NO_COLOR= TERM=tmux-256color");
        assert!(rich.contains("38;5;") && !rich.is_ascii(), "{rich:?}");
    });
}

#[test]
fn signals_end_it_in_order() {
    in_new_namespace(|| {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let screen = Screen::tracer("watch");
            screen.shows(&["PER SECOND"]);
            kill(screen.process(), signal).expect("a signal");
            screen.is_given_back();
        }
        // Its terminal is gone.
        let screen = Screen::tracer("watch");
        screen.shows(&["PER SECOND"]);
        let process = screen.process();
        drop(screen);
        eventually("ended with its terminal", || kill(process, None).is_err());
    });
}

#[test]
fn a_shell_can_stop_it_and_let_it_go_on() {
    in_new_namespace(|| {
        let shell = "PS1='shell> ' bash --norc --noprofile -i";
        let screen = Screen::run(shell);
        screen.shows(&["shell>"]);
        screen.press(&[&format!("LC_ALL=C.UTF-8 {PROGRAM} watch --netns self --buffer 1M"), "Enter"]);
        screen.shows(&["PER SECOND"]);
        screen.press(&["C-z"]);
        screen.shows(&["Stopped", "shell>"]);
        screen.press(&["fg", "Enter"]);
        screen.shows(&["PER SECOND", "q quit"]);
        screen.press(&["q"]);
        screen.shows(&["seen ", "shell>"]);
        screen.press(&["exit", "Enter"]);
        screen.is_given_back();
    });
}

#[test]
fn without_a_command_a_terminal_shows_the_screen() {
    in_new_namespace(|| {
        let screen = Screen::tracer("--duration 3s");
        screen.shows(&["1 Overview", "PER SECOND"]);
        screen.is_given_back();
        drop(screen);
        // Whoever asks for records gets records.
        let screen = Screen::tracer("--duration 0s --format csv");
        screen.shows(&["v,time,mono_ns", "status 0"]);
    });
    let ended = run("--duration 0s --netns self --buffer 1M").in_order();
    assert!(ended.stdout[0].starts_with("TIME (UTC)"), "{:?}", ended.stdout);
}

#[test]
fn a_recording_is_replayed_with_its_findings_in_the_time_bar() {
    in_new_namespace(|| {
        // A recording has a sample after a second, which finds some of the sockets, and one at its end.
        let file = folder().join("leak.arrows");
        let path = file.display().to_string();
        let mut record = program(&format!("record --netns self --buffer 1M {path}"));
        let mut tracer = crate::harness::Tracer::spawn(&mut record);
        tracer.await_attached();
        let server = LeakyServer::start("--rate 100 --count 20 --hold 120");
        crate::trouble::until_it_has_lasted(Duration::from_secs(2), Instant::now());
        tracer.interrupt().in_order();

        let screen = Screen::run(&format!("LC_ALL=C.UTF-8 {PROGRAM} watch --close-wait-age 1s --from {path}"));
        screen.shows(&["PLAY", "×1 ", "━", "!"]);
        screen.press(&["Space"]);
        screen.shows(&["PAUSED"]);
        screen.press(&["n"]);
        screen.shows(&[&format!("leaky_server[{}]", server.pid)]);
        screen.press(&["^"]);
        screen.shows(&["FINDINGS  the first sample", " 0ns of "]);
        screen.press(&["6", ".", ".", "."]);
        screen.shows(&["CLOSE       → LISTEN", "→ SYN_SENT"]);
        screen.press(&["$", "2"]);
        screen.shows(&["END", "leaves 20 sockets in CLOSE_WAIT"]);
        screen.press(&["q"]);
        screen.is_given_back();
    });
}

#[test]
fn a_panic_gives_the_terminal_back_first() {
    if std::env::var_os(PANICS).is_some() {
        let mut terminal = Terminal::open().expect("a terminal");
        let abilities = Abilities { ascii: false, colours: Colours::Many };
        let state = State::new(About::default(), abilities, terminal.size().expect("a size"));
        terminal.show(&state).expect("shown");
        let _ = thread::spawn(|| panic!("somewhere else")).join();
        terminal.show(&state).expect("nothing shown");
        return;
    }
    in_new_namespace(|| {
        let test = std::env::current_exe().expect("a program");
        let name = "screen::a_panic_gives_the_terminal_back_first";
        let screen = Screen::run(&format!(
            "RUST_BACKTRACE=0 {PANICS}=1 {} --exact {name} --nocapture --test-threads 1",
            test.display()
        ));
        let seen = screen.shows(&["somewhere else", "status 0", "icanon"]);
        assert!(!seen.contains("PER SECOND"), "{seen}");
        let modes = screen.tmux(&["display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}"]);
        assert_eq!(modes.trim(), "0 0 1");
    });
}
