//! MPTCP: its connections pass the tracepoint as protocol 262, their subflows as TCP, on which workers act.

use std::{net::SocketAddr, path::Path};

use socket2::{Protocol, Socket, Type};

use crate::{
    lab::{BOTH, differs, run},
    net::{self, Family},
};

const MPTCP: i32 = 262;

fn mptcp_socket(family: Family) -> Socket {
    Socket::new(family.domain(), Type::STREAM, Some(Protocol::from(MPTCP))).expect("an MPTCP socket")
}

/// A kernel without it must refuse such a socket.
fn has_no_mptcp() -> bool {
    if Path::new("/proc/sys/net/mptcp/enabled").exists() {
        return false;
    }
    let refused = Socket::new(Family::V4.domain(), Type::STREAM, Some(Protocol::from(MPTCP))).expect_err("no MPTCP");
    assert_eq!(refused.raw_os_error(), Some(libc::EPROTONOSUPPORT), "{refused}");
    differs("it has no MPTCP (CONFIG_MPTCP)");
    true
}

#[test]
fn only_subflows_are_seen_and_nobody_is_taken_for_their_owner() {
    if has_no_mptcp() {
        return;
    }
    run(BOTH, |lab| {
        net::sysctl("mptcp/enabled", "1");
        for family in [Family::V4, Family::V6] {
            let listener = mptcp_socket(family);
            listener.bind(&SocketAddr::new(family.loopback(), 0).into()).expect("bound");
            listener.listen(16).expect("listening");
            let client = mptcp_socket(family);
            client.connect(&SocketAddr::new(family.loopback(), net::port_of(&listener)).into()).expect("connected");
            let server = net::accept(&listener);
            net::write(&client, 5);
            net::read(&server, 5);
            net::write(&server, 3);
            net::read(&client, 3);
            // The descriptors' cookies are those of the MPTCP sockets.
            let ends = lab.ends(&client).without_socket();
            let listening = lab.ends(&listener).without_socket();
            drop(client);
            net::read_end(&server);
            drop(server);
            drop(listener);
            for (ends, opening) in [(ends, "active"), (ends.flipped(), "passive")] {
                lab.settle("end of the subflow", |lab| {
                    lab.ended.iter().any(|connection| {
                        connection.tuple.local.port == ends.local.port()
                            && connection.tuple.remote.port == ends.remote.port()
                    })
                });
                let connection = lab.connection(&ends);
                assert_eq!(connection.opening.name(), opening);
                assert_eq!(connection.process, None, "{connection:?}");
                assert!(!connection.gap, "{connection:?}");
            }
            lab.life(&listening, 2);
        }
        // A listener, a client and a server for each family, and no MPTCP socket.
        assert_eq!(lab.life_count(), 6);
        for life in &lab.lives {
            for transition in life.transitions() {
                assert!(transition.details.is_some_and(|details| details.mptcp), "{transition:?}");
                assert_eq!(transition.owner(), None, "{transition:?}");
            }
        }
        lab.forget_lives();
    });
}

#[test]
fn an_mptcp_socket_that_falls_back_is_a_tcp_connection() {
    if has_no_mptcp() {
        return;
    }
    run(BOTH, |lab| {
        let listener = net::listen(Family::V4, 16);
        let client = mptcp_socket(Family::V4);
        client.connect(&SocketAddr::new(Family::V4.loopback(), net::port_of(&listener)).into()).expect("connected");
        let server = net::accept(&listener);
        net::write(&client, 5);
        net::read(&server, 5);
        let ends = lab.ends(&client).without_socket();
        drop(client);
        net::read_end(&server);
        drop(server);
        lab.expect_events(ends.flipped(), "LI>SR S, SR>ES S, ES>CW S, CW>LA P, LA>CL B");
        lab.expect_life(&ends.flipped(), "passive: SR ES CW LA -> passive, none; in 5, out 0; closer");
        let connection = lab.connection(&ends);
        assert_eq!(connection.bytes_out, Some(5), "{connection:?}");
        assert_eq!(lab.life_count(), 3);
        drop(listener);
        lab.forget_lives();
    });
}
