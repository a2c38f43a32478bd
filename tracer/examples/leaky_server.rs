//! A TCP server that leaks `CLOSE_WAIT` sockets on purpose, in the ways that servers do: something for the tracer to find.
//!
//! Its clients are a process of their own, this program again, so that the two ends have different owners. They connect,
//! say something if need be, and close; the server's end stays. It is bounded in number and time, and both processes end
//! when what started them does.
//!
//! `cargo run --example leaky_server -- --kind data-unread --rate 20`, and beside it `sudo tracer diagnose`.

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::parent_id,
    process::{self, Child, Command, ExitCode, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

const USAGE: &str = "usage: leaky_server [--kind eof-read-not-closed|fin-unread|data-unread|never-accepted] [--port N] \
                     [--rate PER_SECOND] [--count N] [--hold SECONDS]";

/// What the server fails to do, in the words of the tracer's causes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Reads the end of the stream, and does not close.
    EofReadNotClosed,
    /// Never reads, so that it does not see that the client has closed.
    FinUnread,
    /// Never reads, and the client has sent something.
    DataUnread,
    /// Never accepts.
    NeverAccepted,
}

impl Kind {
    const NAMES: [(Self, &'static str); 4] = [
        (Self::EofReadNotClosed, "eof-read-not-closed"),
        (Self::FinUnread, "fin-unread"),
        (Self::DataUnread, "data-unread"),
        (Self::NeverAccepted, "never-accepted"),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(kind, _)| *kind).ok_or_else(|| format!("unknown --kind {text}"))
    }
}

struct Options {
    kind: Kind,
    port: u16,
    rate: f64,
    count: u32,
    hold: Duration,
    /// Be the clients of the server at `--port`.
    clients: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let hold = Duration::from_secs(60);
        let mut options = Self { kind: Kind::EofReadNotClosed, port: 0, rate: 5.0, count: 100, hold, clients: false };
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{name} wants a value"));
            match name.as_str() {
                "--kind" => options.kind = value()?.parse()?,
                "--port" => options.port = number(&name, &value()?)?,
                "--rate" => options.rate = number(&name, &value()?)?,
                "--count" => options.count = number(&name, &value()?)?,
                "--hold" => options.hold = Duration::from_secs(number(&name, &value()?)?),
                "--clients" => options.clients = true,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        if !(0.1..=10_000.0).contains(&options.rate) {
            return Err(format!("--rate {} is not between 0.1 and 10000", options.rate));
        }
        Ok(options)
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} {value} is not a number that fits"))
}

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("leaky_server: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let done = if options.clients { be_clients(&options) } else { be_server(&options) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leaky_server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Listens, starts the clients, and stays until `--hold` has passed or whoever started this is gone.
fn be_server(options: &Options) -> io::Result<()> {
    let parent = parent_id();
    let ends = Instant::now() + options.hold;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))?;
    let port = listener.local_addr()?.port();
    let kind = options.kind;
    println!("leaky_server pid={} port={port} kind={}", process::id(), kind.name());
    io::stdout().flush()?;

    let _clients = Clients(
        Command::new(env::current_exe()?)
            .args(["--clients", "--port", &port.to_string(), "--kind", kind.name()])
            .args(["--rate", &options.rate.to_string(), "--count", &options.count.to_string()])
            .stdin(Stdio::null())
            .spawn()?,
    );
    // In the other thread, so that a connection that says nothing cannot keep this one from ending.
    let _listener = if kind == Kind::NeverAccepted {
        Some(listener)
    } else {
        thread::spawn(move || leak(&listener, kind));
        None
    };
    while Instant::now() < ends && parent_id() == parent {
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Accepts, and never closes.
fn leak(listener: &TcpListener, kind: Kind) {
    let mut leaked = Vec::new();
    for stream in listener.incoming() {
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // As in life: it ends when the descriptors do, and what was leaked stays.
                eprintln!("leaky_server: cannot accept more than {}: {error}", leaked.len());
                break;
            }
        };
        if kind == Kind::EofReadNotClosed {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut buffer = [0; 512];
            while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
        }
        leaked.push(stream);
    }
    loop {
        thread::park();
    }
}

/// Connects `--count` times at `--rate`, and closes each connection at once.
fn be_clients(options: &Options) -> io::Result<()> {
    let server = parent_id();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
    for _ in 0..options.count {
        if parent_id() != server {
            break;
        }
        // A full accept queue answers nothing; what is in it is leak enough.
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        if matches!(options.kind, Kind::DataUnread | Kind::EofReadNotClosed) {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        }
        drop(stream);
        thread::sleep(Duration::from_secs_f64(1.0 / options.rate));
    }
    Ok(())
}

/// The process of the clients, which ends with this value.
struct Clients(Child);

impl Drop for Clients {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
