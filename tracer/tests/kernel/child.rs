//! Another process in the same namespace, for whatever depends on whose a socket is: this test program once more, which
//! then does as it is told.
//!
//! A process that is forked has, until it executes its program, a descriptor of every socket of every test, and it may
//! then be the one that closes it last. So children are not forked from here, but from a process that was started before
//! the first socket, the nursery.

use std::{
    io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write, stdin},
    net::SocketAddr,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

use nix::{
    cmsg_space,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        signal::{SigHandler, Signal, kill, signal},
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    },
    unistd::Pid,
};
use socket2::Socket;

use crate::{
    lab::{Lab, PATIENCE},
    net::{self, Family},
    sock_destroy::destroy,
};

/// Set in the environment of such a process: what it is.
const ROLE: &str = "TRACER_KERNEL_TEST_ROLE";
/// Set in a child's environment: the descriptors that it was given.
const GIVEN: &str = "TRACER_KERNEL_TEST_GIVEN";
/// Begins each answer: the test harness has its own things to say.
const ANSWER: &str = "child: ";

/// This program, to run one of the functions below.
fn this_program(role: &str, function: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", function, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

fn has_role(role: &str) -> bool {
    std::env::var_os(ROLE).is_some_and(|value| value == role)
}

/// The process that children are forked from. It ends when this one does, which closes the other end of `talk`.
pub(crate) struct Nursery {
    talk: Mutex<UnixStream>,
    _process: std::process::Child,
}

/// Starts the nursery, unless it is there.
pub(crate) fn start_nursery() -> &'static Nursery {
    static NURSERY: OnceLock<Nursery> = OnceLock::new();
    NURSERY.get_or_init(|| {
        let (here, there) = UnixStream::pair().expect("a pair of sockets");
        let mut command = this_program("nursery", "child::keeps_the_nursery");
        let process = command.stdin(OwnedFd::from(there)).stdout(Stdio::null()).spawn().expect("the nursery");
        Nursery { talk: Mutex::new(here), _process: process }
    })
}

/// What the nursery does. In an ordinary run it is no test of anything and does nothing.
#[test]
fn keeps_the_nursery() {
    if !has_role("nursery") {
        return;
    }
    // SAFETY: no handler, so nothing runs. Children are not waited for.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.expect("SIGCHLD");
    // SAFETY: standard input is the socket to the tests, and nobody else reads it.
    let mut control = UnixStream::from(unsafe { OwnedFd::from_raw_fd(0) });
    loop {
        let mut given = receive_descriptors(&control).into_iter();
        let (Some(netns), Some(orders)) = (given.next(), given.next()) else {
            std::process::exit(0);
        };
        let given: Vec<OwnedFd> = given.collect();
        let numbers: Vec<RawFd> = given.iter().map(AsRawFd::as_raw_fd).collect();
        let listed: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        let mut child = this_program("child", "child::acts_as_told");
        child.env(GIVEN, listed.join(",")).stdin(orders.try_clone().expect("a descriptor")).stdout(orders);
        let netns_fd = netns.as_raw_fd();
        // SAFETY: the closure makes async-signal-safe system calls and allocates nothing.
        unsafe {
            child.pre_exec(move || {
                let entered = libc::setns(netns_fd, libc::CLONE_NEWNET) == 0;
                if entered && numbers.iter().all(|fd| libc::fcntl(*fd, libc::F_SETFD, 0) == 0) {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        let pid = child.spawn().expect("a child process").id();
        control.write_all(&pid.to_ne_bytes()).expect("an answer");
    }
}

/// A child process. It ends when it is dropped.
pub(crate) struct Child {
    pid: Pid,
    talk: BufReader<UnixStream>,
}

impl Child {
    /// Starts one; expectations know it as `name`.
    pub(crate) fn start(lab: &mut Lab, name: &'static str) -> Self {
        Self::start_with(lab, name, &[])
    }

    /// Starts one that is given descriptors.
    pub(crate) fn start_with(lab: &mut Lab, name: &'static str, given: &[&dyn AsRawFd]) -> Self {
        let (here, there) = UnixStream::pair().expect("a pair of sockets");
        here.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
        let netns = std::fs::File::open("/proc/thread-self/ns/net").expect("the namespace's file");
        let fds: Vec<RawFd> =
            [netns.as_raw_fd(), there.as_raw_fd()].into_iter().chain(given.iter().map(|fd| fd.as_raw_fd())).collect();
        let mut pid = [0; 4];
        {
            let mut nursery = start_nursery().talk.lock().unwrap_or_else(PoisonError::into_inner);
            pass(&*nursery, &fds);
            nursery.read_exact(&mut pid).expect("a child's process id");
        }
        drop(there);
        let pid = u32::from_ne_bytes(pid);
        lab.name_process(name, pid);
        let mut child = Self { pid: Pid::from_raw(pid.cast_signed()), talk: BufReader::new(here) };
        child.answer("its start");
        child
    }

    /// Gives an order and waits for the answer.
    pub(crate) fn order(&mut self, order: &str) -> String {
        self.say(order);
        self.answer(order)
    }

    fn say(&mut self, order: &str) {
        writeln!(self.talk.get_mut(), "{order}").expect("an order");
    }

    fn answer(&mut self, to: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let length = self.talk.read_line(&mut line).expect("an answer");
            assert_ne!(length, 0, "the child ended at {to:?}");
            // The harness does not end its line before the test begins.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Connects to a port over loopback; returns the local end.
    pub(crate) fn connect(&mut self, family: Family, port: u16) -> SocketAddr {
        self.order(&format!("connect {family:?} {port}")).parse().expect("an address")
    }

    /// Ends it by exit, with whatever it has open.
    pub(crate) fn exit(mut self) {
        self.say("exit");
        self.await_end();
    }

    /// Ends it by SIGKILL.
    pub(crate) fn kill(mut self) {
        kill(self.pid, Signal::SIGKILL).expect("SIGKILL");
        self.await_end();
    }

    /// Its end closes the other end.
    fn await_end(&mut self) {
        let _ = self.talk.read_to_end(&mut Vec::new());
    }
}

/// What a child does. In an ordinary run it is no test of anything and does nothing.
#[test]
fn acts_as_told() {
    if !has_role("child") {
        return;
    }
    let given = std::env::var(GIVEN).expect("what it is given");
    let mut given = given.split(',');
    let mut sockets: Vec<Socket> = Vec::new();
    answer("ready");
    for line in stdin().lines() {
        let line = line.expect("an order");
        let words: Vec<&str> = line.split(' ').collect();
        let last = || sockets.last().expect("a socket");
        match words[..] {
            ["connect", family, port] => {
                sockets.push(net::connect(family_of(family), port.parse().expect("a port")));
                let address = sockets.last().expect("just pushed").local_addr().expect("an address");
                let address = address.as_socket().expect("an IP address");
                answer(&SocketAddr::new(address.ip().to_canonical(), address.port()).to_string());
            }
            ["listen", family] => {
                sockets.push(net::listen(family_of(family), 16));
                answer(&net::port_of(sockets.last().expect("just pushed")).to_string());
            }
            ["accept"] => {
                let accepted = net::accept(last());
                sockets.push(accepted);
                answer("accepted");
            }
            ["adopt"] => {
                let fd: RawFd = given.next().and_then(|fd| fd.parse().ok()).expect("a descriptor");
                // SAFETY: the nursery made sure that this process inherits it, and nothing else here uses it.
                let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
                fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("FD_CLOEXEC");
                sockets.push(descriptor.into());
                answer("adopted");
            }
            ["receive"] => {
                let received = receive_descriptors(last());
                sockets.extend(received.into_iter().map(Socket::from));
                answer("received");
            }
            ["write", count] => {
                net::write(last(), count.parse().expect("a number"));
                answer("written");
            }
            ["read", count] => {
                net::read(last(), count.parse().expect("a number"));
                answer("read");
            }
            ["close"] => {
                drop(sockets.pop().expect("a socket"));
                answer("closed");
            }
            ["destroy", local, remote] => {
                destroy(local.parse().expect("an address"), remote.parse().expect("an address"));
                answer("destroyed");
            }
            ["exit"] => std::process::exit(0),
            _ => panic!("what is {line:?}?"),
        }
    }
    // Nobody listens any more to what the harness would have to say.
    std::process::exit(0);
}

fn answer(text: &str) {
    println!("{ANSWER}{text}");
}

fn family_of(name: &str) -> Family {
    *Family::ALL.iter().find(|family| format!("{family:?}") == name).expect("a family")
}

/// Passes descriptors on (SCM_RIGHTS).
pub(crate) fn pass(to: &impl AsRawFd, fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).expect("sent");
}

/// Takes what was passed on; nothing when the other end is closed.
fn receive_descriptors(from: &impl AsRawFd) -> Vec<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 8]);
    let message =
        recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).expect("a message");
    let mut fds = Vec::new();
    for message in message.cmsgs().expect("control messages") {
        if let ControlMessageOwned::ScmRights(received) = message {
            // SAFETY: the kernel has just made them for this process.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    fds
}
