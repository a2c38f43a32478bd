//! Makes TCP connections on loopback as fast as it can, in one thread: each is opened, accepted and closed at both ends,
//! ten transitions. What the benches put their tracers beside.
//!
//! `load [--seconds N] [--rate PER_SECOND] [--live N] [--aborts]` prints how many connections it made, and in how many
//! seconds. `--live` opens so many more before it begins and keeps them open; with `--aborts` the client ends each with a
//! RST (SO_LINGER 0).

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    time::{Duration, Instant},
};

use socket2::SockRef;

/// Destinations of the connections that stay open: each has its own 28 000 ports.
const LIVE_PER_DESTINATION: usize = 20_000;

struct Options {
    seconds: f64,
    rate: Option<f64>,
    live: usize,
    aborts: bool,
}

fn options() -> Option<Options> {
    let mut options = Options { seconds: 3.0, rate: None, live: 0, aborts: false };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--aborts" {
            options.aborts = true;
            continue;
        }
        let value = args.next()?;
        match name.as_str() {
            "--seconds" => options.seconds = value.parse().ok()?,
            "--rate" => options.rate = Some(value.parse().ok()?),
            "--live" => options.live = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("usage: load [--seconds N] [--rate PER_SECOND] [--live N] [--aborts]");
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok((connections, seconds)) => {
            println!("{connections} {seconds:.6}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<(u64, f64)> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let mut live = Vec::with_capacity(options.live);
    for number in 0..options.live {
        let to = SocketAddr::from(([127, 0, 1, 1 + (number / LIVE_PER_DESTINATION) as u8], port));
        live.push((TcpStream::connect(to)?, listener.accept()?.0));
    }
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(options.seconds);
    let mut connections = 0_u64;
    loop {
        let now = Instant::now();
        if now >= until {
            break;
        }
        if let Some(rate) = options.rate {
            let due = began + Duration::from_secs_f64(connections as f64 / rate);
            if let Some(wait) = due.checked_duration_since(now) {
                std::thread::sleep(wait.min(until - now));
                continue;
            }
        }
        let client = TcpStream::connect(to)?;
        let (server, _) = listener.accept()?;
        if options.aborts {
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        }
        drop(client);
        drop(server);
        connections += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    drop(live);
    Ok((connections, seconds))
}
