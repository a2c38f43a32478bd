//! `tracer diagnose` beside connects that fail, and connections that end by themselves.

use std::{
    io::{Read, Write},
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    process::id,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    diagnose::findings,
    diagnosis::Diagnosis,
    harness::{PATIENCE, assert_values, eventually, in_new_namespace},
    net::{self, close, count_in, local, pair},
    trouble::{in_evidence, of_kind, until_it_has_lasted, watch},
};

const MANY: u64 = 12;

#[test]
fn connects_to_where_nobody_listens() {
    in_new_namespace(|| {
        let tracer = watch();
        let nobody = local(&net::listen());
        for _ in 0..MANY {
            TcpStream::connect(nobody).expect_err("refused");
        }
        let finding = of_kind(&tracer.interrupt(), "connect_failures");
        assert_values(&finding, &json!({"severity": "warning", "count": MANY, "remote": nobody.to_string()}));
        assert_eq!(finding["process"]["pid"], id());
        assert_eq!(finding["evidence"], json!(["of 12 connect() calls: 12 refused"]));
    });
}

/// The kernel gives up some, the program the others.
#[test]
fn connects_that_nobody_answers() {
    in_new_namespace(|| {
        let listener = net::listen();
        net::deafen(&listener);
        let to = local(&listener);
        let tracer = watch();
        let began = Instant::now();
        let patient: Vec<Socket> = (0..MANY).map(|_| net::begin_connect(to)).collect();
        let timed: Vec<Socket> = (0..MANY).map(|_| net::begin_connect(to)).collect();
        for socket in &timed {
            socket.set_tcp_user_timeout(Some(Duration::from_millis(300))).expect("TCP_USER_TIMEOUT");
        }
        eventually("timed out", || count_in(net::SYN_SENT) == patient.len());
        until_it_has_lasted(Duration::from_millis(1_100), began);
        patient.into_iter().for_each(close);
        let finding = of_kind(&tracer.interrupt(), "connect_failures");
        assert_values(&finding, &json!({"severity": "warning", "count": 2 * MANY, "remote": to.to_string()}));
        assert_eq!(finding["evidence"], json!(["of 24 connect() calls: 12 timed out, 12 given up without an answer"]));
    });
}

/// Answers the next SYN of this namespace as a router does that knows no way on: ICMP, host unreachable.
fn refuse_the_next_syn(packets: &Socket) {
    const HOST_UNREACHABLE: [u8; 8] = [3, 1, 0, 0, 0, 0, 0, 0];
    let mut packet = [MaybeUninit::uninit(); 128];
    packets.recv(&mut packet).expect("the SYN");
    // SAFETY: so much of it at least was received, an IP header and the ports and number of a TCP header.
    let begins: Vec<u8> = packet[..28].iter().map(|byte| unsafe { byte.assume_init() }).collect();
    let mut message = [&HOST_UNREACHABLE[..], &begins].concat();
    let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let router = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("a raw socket");
    router.send_to(&message, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("sent");
}

#[test]
fn connects_to_a_host_that_no_route_leads_to() {
    in_new_namespace(|| {
        let listener = net::listen();
        net::deafen(&listener);
        let packets = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).expect("a raw socket");
        packets.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
        let tracer = watch();
        for _ in 0..MANY {
            let client = net::begin_connect(local(&listener));
            refuse_the_next_syn(&packets);
            eventually("unreachable", || count_in(net::SYN_SENT) == 0);
            let error = client.take_error().expect("SO_ERROR").expect("an error");
            assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{error}");
        }
        let finding = of_kind(&tracer.interrupt(), "connect_failures");
        assert_values(&finding, &json!({"severity": "warning", "count": MANY}));
        assert_eq!(finding["evidence"], json!(["of 12 connect() calls: 12 EHOSTUNREACH"]));
    });
}

#[test]
fn a_few_failed_connects_are_told_and_no_more() {
    in_new_namespace(|| {
        let tracer = watch();
        let nobody = local(&net::listen());
        for _ in 0..3 {
            TcpStream::connect(nobody).expect_err("refused");
        }
        let finding = of_kind(&tracer.interrupt(), "connect_failures");
        assert_values(&finding, &json!({"severity": "info", "count": 3}));
    });
}

/// However a connection ends without the program: it keeps a descriptor that no list of sockets has.
#[test]
fn descriptors_that_outlive_connections_that_were_reset_timed_out_or_killed() {
    in_new_namespace(|| {
        let listener = net::listen();
        let tracer = Diagnosis::watch("--close-wait-age 0s");
        let (reset, server) = pair(&listener);
        net::linger_zero(&server);
        close(server);
        (&reset).read(&mut [0]).expect_err("a reset");

        let (killed, server) = pair(&listener);
        net::kill(&killed);
        close(server);

        let (timed_out, server) = pair(&listener);
        net::deafen(&server);
        SockRef::from(&timed_out).set_tcp_user_timeout(Some(Duration::from_millis(300))).expect("TCP_USER_TIMEOUT");
        (&timed_out).write_all(b"hello?").expect("written");
        eventually("timed out", || count_in(net::ESTABLISHED) == 1);

        let ended = tracer.interrupt();
        let finding = of_kind(&ended, "closed_not_released");
        assert_values(&finding, &json!({"severity": "warning", "count": 3, "remote": local(&listener).to_string()}));
        in_evidence(&finding, "1 killed, 1 reset_received, 1 timed_out");
        let fds: Vec<Value> = [&reset, &killed, &timed_out].map(|socket| json!([socket.as_raw_fd()])).to_vec();
        let sockets = finding["sockets"].as_array().expect("sockets");
        assert!(sockets.iter().all(|socket| fds.contains(&socket["fds"])), "{finding}");
        assert_eq!(findings(&ended, 0).len(), 1);
    });
}
