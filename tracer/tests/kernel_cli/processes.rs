//! `tracer diagnose` beside other processes: one at the limit of its descriptors, and those that share sockets.

use std::{
    io::{BufRead, BufReader, Read, Write, stdin},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio, id},
};

use nix::sys::resource::{Resource, setrlimit};
use serde_json::json;

use crate::{
    diagnose::findings,
    diagnosis::at_once,
    harness::{assert_values, eventually, in_new_namespace, spawn},
    net::{self, CLOSE_WAIT, LISTEN, close, count_in, local, pair},
    trouble::{in_evidence, nothing_is_found, of_kind, watch},
};

/// In the environment of the process that leaks: how many connections.
const LEAKS: &str = "TRACER_CLI_TEST_LEAKS";

/// Another process; it ends with the test.
struct Other(Child);

impl Other {
    /// One that sleeps, with a descriptor of a socket of ours.
    fn holding(socket: &impl AsFd) -> Self {
        let fd = socket.as_fd().as_raw_fd();
        let mut command = Command::new("sleep");
        command.arg("1000");
        // SAFETY: fcntl() may be called between fork and exec. The child has its own descriptor flags.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(fd, libc::F_SETFD, 0) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        Self(spawn(&mut command))
    }

    fn name(&self) -> String {
        format!("sleep[{}]", self.0.id())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: the process that [`a_leak_that_has_used_up_the_descriptors`] looks at.
#[test]
fn leaks_when_told_to() {
    let Some(count) = std::env::var(LEAKS).ok().and_then(|count| count.parse::<usize>().ok()) else {
        return;
    };
    let listener = net::listen();
    println!("listens at {}", local(&listener));
    let _leaked: Vec<TcpStream> = (0..count)
        .map(|_| {
            let server = net::accept(&listener);
            net::await_end(&server);
            server
        })
        .collect();
    println!("leaked {count}");
    let _ = stdin().read(&mut [0]);
}

#[test]
fn a_leak_that_has_used_up_the_descriptors() {
    const LIMIT: u64 = 64;
    const COUNT: usize = 50;
    in_new_namespace(|| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "processes::leaks_when_told_to", "--nocapture", "--test-threads=1"]);
        command.env(LEAKS, COUNT.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: setrlimit() may be called between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_NOFILE, LIMIT, LIMIT)?));
        }
        let mut leaky = Other(spawn(&mut command));
        let mut said = BufReader::new(leaky.0.stdout.take().expect("a pipe")).lines().map(|line| line.expect("a line"));
        let mut hear = |begin: &str| {
            said.find_map(|line| Some(line.split_once(begin)?.1.to_owned())).unwrap_or_else(|| panic!("no {begin:?}"))
        };
        let address = hear("listens at ");
        (0..COUNT).for_each(|_| close(TcpStream::connect(&*address).expect("connected")));
        hear("leaked ");
        let found = findings(&at_once("--close-wait-age 0s --fail-on critical"), 1);
        assert_eq!(found.len(), 1, "{found:#?}");
        let expected =
            json!({"kind": "close_wait", "severity": "critical", "count": COUNT, "cause": "eof_read_not_closed"});
        assert_values(&found[0], &expected);
        assert_eq!(found[0]["process"]["pid"], leaky.0.id());
        in_evidence(&found[0], &format!(" of {LIMIT}"));
    });
}

#[test]
fn all_who_share_a_leaked_socket_are_named() {
    in_new_namespace(|| {
        let listener = net::listen();
        let (client, server) = pair(&listener);
        let other = Other::holding(&server);
        close(client);
        eventually("in CLOSE_WAIT", || count_in(CLOSE_WAIT) == 1);
        let finding = of_kind(&at_once("--close-wait-age 0s"), "close_wait");
        in_evidence(&finding, "1 socket shared by ");
        in_evidence(&finding, &format!("[{}]", id()));
        in_evidence(&finding, &other.name());
        // Here we have closed it, which is not enough.
        close(server);
        let finding = of_kind(&at_once("--close-wait-age 0s"), "close_wait");
        assert_eq!(finding["process"]["pid"], other.0.id());
    });
}

/// What a server does whose workers inherit the listener: the parent's close() ends nothing, and the port is served.
#[test]
fn a_listener_lives_as_long_as_a_worker_has_it() {
    in_new_namespace(|| {
        let listener = net::listen();
        let tracer = watch();
        let worker = Other::holding(&listener);
        let (_client, _server) = pair(&listener);
        close(listener);
        nothing_is_found(&tracer.interrupt());

        let tracer = watch();
        drop(worker);
        eventually("closed", || count_in(LISTEN) == 0);
        let finding = of_kind(&tracer.interrupt(), "port_blocked");
        assert_values(&finding, &json!({"severity": "info", "count": 1}));
    });
}

/// Sockets without anything wrong are of no interest, however many hold them.
#[test]
fn a_prefork_server_at_work_is_healthy() {
    in_new_namespace(|| {
        let listener: TcpListener = net::listen();
        let workers: Vec<Other> = (0..4).map(|_| Other::holding(&listener)).collect();
        let tracer = watch();
        let mut open = Vec::new();
        for number in 0..100 {
            let (client, server) = pair(&listener);
            (&client).write_all(b"request").expect("written");
            (&server).read_exact(&mut [0; 7]).expect("read");
            if number % 10 == 0 {
                open.push((client, server));
            } else {
                net::close_in_order((client, server));
            }
        }
        nothing_is_found(&tracer.interrupt());
        drop(workers);
    });
}
