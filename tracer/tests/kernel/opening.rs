//! How connections begin.

use std::net::SocketAddr;

use socket2::SockAddr;
use tracer::core::{
    connection::{Closing, Connection},
    state::State,
    transition::Errno,
};

use crate::{
    lab::{BOTH, BTF, Ends, Lab, run},
    net::{self, Family},
    peer::{ACK, FIN, PSH, Peer, RST, SYN, Wire, opened_by_host, opened_by_peer, peer_address},
};

#[test]
fn a_listener_is_no_connection() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let listener = net::listen(family, 16);
            let ends = lab.ends(&listener);
            lab.life(&ends, 1);
            assert_eq!(lab.tracker.listener_count(), 1);
            drop(listener);
            lab.expect_events(ends, "CL>LI P, LI>CL P");
            assert_eq!(lab.tracker.listener_count(), 0);
            assert!(lab.tracker.is_empty());
        }
        assert!(lab.ended.is_empty());
    });
}

#[test]
fn a_listen_that_fails_begins_and_ends_at_once() {
    run(BOTH, |lab| {
        let bound = |port| {
            let socket = net::socket(Family::V4);
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            socket.bind(&SocketAddr::new(Family::V4.loopback(), port).into()).expect("bound");
            socket
        };
        let first = bound(0);
        let second = bound(net::port_of(&first));
        first.listen(1).expect("listening");
        let error = second.listen(1).expect_err("the port is taken");
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        lab.expect_events(lab.ends(&first), "CL>LI P");
        // From what the socket holds, the way back could as well be a killer's: that it is this process's own need not be
        // told.
        lab.expect_events(lab.ends(&second), "CL>LI P, LI>CL B");
        assert_eq!(lab.tracker.listener_count(), 1);
    });
}

#[test]
fn the_handshake_shows_at_the_client_from_its_syn_and_at_the_server_from_the_last_ack() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let (client, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            lab.life(&ends, 2);
            peer.send(RST | ACK, &[]);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, rst<, ES>CL S",
                "active: SS ES -> reset_received, none, ECONNRESET; in 0, out 0; opener",
            );
            drop(client);

            let listener = Wire::listen(family, 16);
            let mut peer = Peer::calling(&wire, family, 5000, net::port_of(&listener), &[]);
            peer.take(SYN | ACK);
            lab.drain();
            assert_eq!(lab.lives.last().expect("the listener").transitions().count(), 1, "a SYN makes no socket");
            let ends = peer.host_ends();
            peer.send(ACK, &[]);
            lab.life(&ends, 2);
            // Not accepted: the listener's owner is all there is to know, and there is no inode yet.
            let life = lab.life(&ends, 2);
            assert!(life.transitions().all(|transition| transition.details.is_some_and(|details| details.inode == 0)));
            let server = net::accept(&listener);
            assert_eq!(lab.life(&ends, 2).transitions().count(), 2, "accept() is no transition");
            peer.send(RST | ACK, &[]);
            lab.expect(
                ends,
                "LI>SR S, SR>ES S, rst<, ES>CL S",
                "passive: SR ES -> reset_received, none, ECONNRESET; in 0, out 0; listener",
            );
            drop(server);
            let ends = lab.ends(&listener);
            drop(listener);
            lab.expect_events(ends, "CL>LI P, LI>CL P");
        }
    });
}

#[test]
fn the_local_port_is_known_at_once_only_when_bound() {
    run(BOTH, |lab| {
        let listener = net::listen(Family::V4, 16);
        let to = SocketAddr::new(Family::V4.loopback(), net::port_of(&listener));
        for bound in [false, true] {
            let client = net::socket(Family::V4);
            if bound {
                client.bind(&SocketAddr::new(Family::V4.loopback(), 0).into()).expect("bound");
            }
            client.connect(&to.into()).expect("connected");
            let ends = lab.ends(&client);
            let first = lab.life(&ends, 1).transitions().next().copied().expect("a transition");
            assert_eq!(first.new, State::SYN_SENT);
            assert_eq!(first.tuple.local.port, if bound { ends.local.port() } else { 0 });
            assert_eq!(first.tuple.remote.port, ends.remote.port());
            net::linger_zero(&client);
            drop(client);
            lab.expect(
                ends,
                "CL>SS P, SS>ES B, ES>CL P, rst>",
                "active: SS ES -> reset_sent, none; in 0, out 0; opener",
            );
            lab.expect(
                ends.flipped(),
                "LI>SR S, SR>ES S, rst<, ES>CL S",
                "passive: SR ES -> reset_received, none, ECONNRESET; in 0, out 0; listener",
            );
        }
        lab.expect_events(lab.ends(&listener), "CL>LI P");
    });
}

#[test]
fn no_free_local_port() {
    run(BOTH, |lab| {
        net::sysctl("ipv4/ip_local_port_range", "40000 40000");
        let wire = Wire::new();
        for family in Family::ALL {
            let (taken, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            let unlucky = net::socket(family);
            let error = unlucky.connect(&peer_address(family, 80)).expect_err("no port is left");
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{error}");
            let local = SocketAddr::new(Wire::host(family), 0);
            lab.expect(
                Ends::new(local, SocketAddr::new(Wire::peer(family), 80)),
                "CL>SS P, SS>CL P",
                "active: SS -> no_local_port, none; in 0, out 0; opener",
            );
            peer.send(RST | ACK, &[]);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, rst<, ES>CL S",
                "active: SS ES -> reset_received, none, ECONNRESET; in 0, out 0; opener",
            );
            drop(taken);
        }
    });
}

#[test]
fn a_connect_without_a_route_is_no_transition() {
    run(BTF, |lab| {
        let to: SocketAddr = "192.0.2.1:80".parse().expect("an address");
        let error = net::socket(Family::V4).connect(&to.into()).expect_err("there is no route");
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
        assert_eq!(lab.life_count(), 0);
    });
}

#[test]
fn refused() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            // By a port of this host that nobody listens on: the answer is there before connect() waits for it.
            let nobody = net::socket(family);
            nobody.bind(&SocketAddr::new(family.bind_address(), 0).into()).expect("bound");
            let to = SocketAddr::new(family.loopback(), net::port_of(&nobody));
            let client = net::socket(family);
            // Bound, because a socket forgets its port when its connection fails.
            client.bind(&SocketAddr::new(family.bind_address(), 0).into()).expect("bound");
            let ends = Ends::new(SocketAddr::new(family.loopback(), net::port_of(&client)), to);
            let error = client.connect(&family.sockaddr(to)).expect_err("refused");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{error}");
            lab.expect(
                ends,
                "CL>SS P, rst<, SS>CL B",
                "active: SS -> refused, none, ECONNREFUSED; in 0, out 0; opener",
            );

            // By another host.
            let client = net::socket(family);
            net::begin_connect(&client, &peer_address(family, 80));
            let mut peer = Peer::called(&wire, family, 80);
            let ends = lab.ends_to(&client, peer.host_ends().remote);
            peer.send(RST | ACK, &[]);
            lab.expect(
                ends,
                "CL>SS P, rst<, SS>CL S",
                "active: SS -> refused, none, ECONNREFUSED; in 0, out 0; opener",
            );
        }
    });
}

#[test]
fn an_unreachable_host_ends_a_connect() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        let client = net::socket(Family::V4);
        net::begin_connect(&client, &peer_address(Family::V4, 80));
        let peer = Peer::called(&wire, Family::V4, 80);
        let ends = lab.ends_to(&client, peer.host_ends().remote);
        peer.unreachable();
        lab.expect(ends, "CL>SS P, SS>CL S", "active: SS -> aborted, none, EHOSTUNREACH; in 0, out 0; opener");
    });
}

#[test]
fn close_while_connecting() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let client = net::socket(family);
            net::begin_connect(&client, &peer_address(family, 80));
            let peer = Peer::called(&wire, family, 80);
            let ends = lab.ends_to(&client, peer.host_ends().remote);
            drop(client);
            lab.expect(ends, "CL>SS P, SS>CL P", "active: SS -> aborted, none; in 0, out 0; opener");
        }
    });
}

#[test]
fn both_ends_connect_at_once() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let client = net::socket(family);
            net::begin_connect(&client, &peer_address(family, 80));
            let mut peer = Peer::called(&wire, family, 80);
            let ends = lab.ends_to(&client, peer.host_ends().remote);
            peer.send(SYN, &[]);
            lab.life(&ends, 2);
            peer.take(SYN | ACK);
            peer.send(ACK, b"hello");
            net::read(&client, 5);
            net::write(&client, 3);
            peer.take(PSH);
            peer.send(ACK, &[]);
            net::await_sent(&client);
            peer.send(RST | ACK, &[]);
            lab.expect(
                ends,
                "CL>SS P, SS>SR S, SR>ES S, rst<, ES>CL S",
                "simultaneous: SS SR ES -> reset_received, none, ECONNRESET; in 5, out 3; opener",
            );
        }
    });
}

#[test]
fn a_socket_connected_to_itself_opens_simultaneously() {
    run(BOTH, |lab| {
        for family in [Family::V4, Family::V6] {
            let socket = net::socket(family);
            socket.bind(&SocketAddr::new(family.loopback(), 0).into()).expect("bound");
            let own = SocketAddr::new(family.loopback(), net::port_of(&socket));
            socket.connect(&own.into()).expect("connected to itself");
            net::write(&socket, 7);
            net::read(&socket, 7);
            let ends = lab.ends(&socket);
            net::linger_zero(&socket);
            drop(socket);
            lab.expect(
                ends,
                "CL>SS P, SS>SR B, SR>ES B, ES>CL P, rst>",
                "simultaneous: SS SR ES -> reset_sent, none; in 7, out 7; opener",
            );
        }
    });
}

#[test]
fn a_simultaneous_open_may_be_reset() {
    run(BTF, |lab| {
        let wire = Wire::new();
        let client = net::socket(Family::V4);
        net::begin_connect(&client, &peer_address(Family::V4, 80));
        let mut peer = Peer::called(&wire, Family::V4, 80);
        let ends = lab.ends_to(&client, peer.host_ends().remote);
        peer.send(SYN, &[]);
        peer.take(SYN | ACK);
        peer.send(RST | ACK, &[]);
        lab.expect(
            ends,
            "CL>SS P, SS>SR S, rst<, SR>CL S",
            "simultaneous: SS SR -> reset_received, none, ECONNRESET; in 0, out 0; opener",
        );
    });
}

/// TCP Fast Open (RFC 7413): the child is made at the SYN, which brings data.
const TFO_SERVER_WITHOUT_COOKIE_OR_OPTION: &str = "1538"; // 0x002 | 0x200 | 0x400

#[test]
fn fast_open_server() {
    run(BOTH, |lab| {
        net::sysctl("ipv4/tcp_fastopen", TFO_SERVER_WITHOUT_COOKIE_OR_OPTION);
        let wire = Wire::new();
        for family in Family::ALL {
            let listener = Wire::listen(family, 16);
            let mut peer = Peer::calling(&wire, family, 5000, net::port_of(&listener), b"hello");
            peer.take(SYN | ACK);
            let ends = peer.host_ends();
            // Not by its ends: before 6.15 the first transition does not tell the remote one.
            let begun = |lab: &mut Lab| {
                lab.drain();
                let child = lab.lives.last().expect("the listener");
                let steps: Vec<_> = child.transitions().map(|step| (step.old, step.new)).collect();
                steps == [(State::LISTEN, State::SYN_RECV)]
            };
            lab.settle("child", begun);
            // It is accepted, and its data read, while the handshake is not complete.
            let server = net::accept(&listener);
            net::read(&server, 5);
            assert!(begun(lab));
            peer.send(ACK, &[]);
            lab.life(&ends, 2);
            drop(server);
            peer.take(FIN);
            peer.send(ACK | FIN, &[]);
            lab.expect(
                ends,
                "LI>SR S, SR>ES S, ES>F1 P, F1>F2 S, F2>CL S",
                "fast_open: SR ES F1 F2 -> active, time_wait; in 5, out 0; closer",
            );
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

#[test]
fn fast_open_on_both_sides() {
    run(BOTH, |lab| {
        // 0x4: a client that needs no cookie either
        net::sysctl("ipv4/tcp_fastopen", "1543");
        for family in Family::ALL {
            let listener = net::listen(family, 16);
            net::set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
            let to = SocketAddr::new(family.loopback(), net::port_of(&listener));
            let client = net::socket(family);
            let sent = client.send_to_with_flags(b"hello", &family.sockaddr(to), libc::MSG_FASTOPEN);
            assert_eq!(sent.expect("sent with the SYN"), 5);
            let server = net::accept(&listener);
            net::read(&server, 5);
            net::write(&server, 3);
            net::read(&client, 3);
            let (ends, listening) = (lab.ends(&client), lab.ends(&listener));
            net::quick_ack(&server);
            drop(client);
            lab.life(&ends, 5);
            net::read_end(&server);
            drop(server);
            lab.expect(
                ends,
                "CL>SS P, SS>ES B, ES>F1 P, F1>F2 B, F2>CL B",
                "active: SS ES F1 F2 -> active, fin_wait_2; in 3, out 5; opener",
            );
            lab.expect(
                ends.flipped(),
                "LI>SR S, SR>ES S, ES>CW S, CW>LA P, LA>CL B",
                "fast_open: SR ES CW LA -> passive, none; in 5, out 3; closer",
            );
            lab.expect_events(listening, "CL>LI P");
        }
    });
}

#[test]
fn a_fast_open_child_may_be_reset_before_its_handshake_is_complete() {
    run(BOTH, |lab| {
        net::sysctl("ipv4/tcp_fastopen", TFO_SERVER_WITHOUT_COOKIE_OR_OPTION);
        let wire = Wire::new();
        let listener = Wire::listen(Family::V4, 16);
        let mut peer = Peer::calling(&wire, Family::V4, 5000, net::port_of(&listener), b"hello");
        peer.take(SYN | ACK);
        let ends = peer.host_ends();
        peer.send(RST, &[]);
        lab.expect(
            ends,
            "LI>SR S, rst<, SR>CL S",
            "fast_open: SR -> reset_received, none, ECONNRESET; in 5, out 0; listener",
        );
        lab.expect_events(lab.ends(&listener), "CL>LI P");
    });
}

#[test]
fn a_full_backlog_makes_no_child() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            // A backlog of 0 has room for one.
            let listener = Wire::listen(family, 0);
            let port = net::port_of(&listener);
            let mut peers: Vec<Peer> =
                (0..2).map(|peer| Peer::calling(&wire, family, 5000 + peer, port, &[])).collect();
            for peer in &mut peers {
                peer.take(SYN | ACK);
                peer.send(ACK, &[]);
            }
            let (first, second) = (peers[0].host_ends(), peers[1].host_ends());
            lab.life(&first, 2);
            peers[0].send(RST | ACK, &[]);
            lab.expect(
                first,
                "LI>SR S, SR>ES S, rst<, ES>CL S",
                "passive: SR ES -> reset_received, none, ECONNRESET; in 0, out 0; listener",
            );
            lab.drain();
            assert!(!lab.lives.iter().any(|life| life.belongs_to(&second)), "no room, no child");
            let ends = lab.ends(&listener);
            drop(listener);
            lab.expect_events(ends, "CL>LI P, LI>CL P");
        }
    });
}

#[test]
fn disconnect_and_connect_again_is_two_connections_of_one_socket() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let listener = net::listen(family, 16);
            let to: SockAddr = family.sockaddr(SocketAddr::new(family.loopback(), net::port_of(&listener)));
            let socket = net::socket(family);
            let mut closed = Vec::new();
            for round in 1..=3 {
                socket.connect(&to).expect("connected");
                let ends = lab.ends(&socket);
                let server = net::accept(&listener);
                net::write(&socket, round);
                net::read(&server, round);
                net::await_sent(&socket);
                net::disconnect(&socket);
                lab.expect_events(ends, "CL>SS P, SS>ES B, ES>CL P, rst>");
                lab.expect_events(ends.flipped(), "LI>SR S, SR>ES S, rst<, ES>CL S");
                let connection = lab.connection(&ends);
                assert_eq!((connection.bytes_out, connection.bytes_in), (Some(round as u64), Some(0)));
                assert_eq!(connection.closing.map(Closing::name), Some("reset_sent"));
                closed.push(connection);
                lab.expect_life(
                    &ends.flipped(),
                    &format!("passive: SR ES -> reset_received, none, ECONNRESET; in {round}, out 0; listener"),
                );
            }
            // Where its cookie is only read, anybody may ask for it in between: another test's tracer, for one.
            let is_one = |two: &[Connection]| two[0].socket.address == two[1].socket.address;
            assert!(closed.windows(2).all(is_one), "one socket: {closed:?}");
            assert!(closed.windows(2).all(|two| two[0].ended_ns < two[1].opened_ns), "{closed:?}");
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

/// The socket still holds the port and the error (`inet_sport`, `sk_err`) of the connection before: both are cleared
/// only once a port is found (tcp_connect_init(), net/ipv4/tcp_output.c).
#[test]
fn no_free_local_port_at_a_second_connect() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        net::sysctl("ipv4/ip_local_port_range", "40000 40000");
        let (socket, mut peer, ends) = opened_by_host(lab, &wire, Family::V4, 80);
        net::disconnect(&socket);
        peer.take(RST);
        lab.expect_events(ends, "CL>SS P, SS>ES S, ES>CL P, rst>");
        lab.expect_life(&ends, "active: SS ES -> reset_sent, none; in 0, out 0; opener");
        let (other, _peer, ends) = opened_by_host(lab, &wire, Family::V4, 80);
        lab.expect_events(ends, "CL>SS P, SS>ES S");
        let error = socket.connect(&peer_address(Family::V4, 80)).expect_err("no port is left");
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{error}");
        lab.settle("end of the second connection", |lab| !lab.ended.is_empty());
        let connection = lab.ended.remove(0);
        assert_eq!(connection.closing, Some(Closing::NoLocalPort), "{connection:?}");
        assert_eq!(connection.error, Errno::NONE, "{connection:?}");
        assert_eq!(connection.tuple.local.port, 0, "{connection:?}");
        drop(other);
        lab.forget_lives();
    });
}

#[test]
fn an_ack_that_comes_with_data_completes_the_handshake() {
    run(BTF, |lab| {
        let wire = Wire::new();
        let listener = Wire::listen(Family::V4, 16);
        let mut peer = Peer::calling(&wire, Family::V4, 5000, net::port_of(&listener), &[]);
        peer.take(SYN | ACK);
        peer.send(ACK, b"hello");
        let server = net::accept(&listener);
        net::read(&server, 5);
        let ends = lab.ends(&server);
        peer.send(RST | ACK, &[]);
        // Not Fast Open, although data had come when the state was left.
        lab.expect(
            ends,
            "LI>SR S, SR>ES S, rst<, ES>CL S",
            "passive: SR ES -> reset_received, none, ECONNRESET; in 5, out 0; listener",
        );
        lab.expect_events(lab.ends(&listener), "CL>LI P");
    });
}

#[test]
fn a_cookie_that_the_kernel_gives_late_does_not_split_a_connection() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        let listener = Wire::listen(Family::V4, 16);
        let (server, mut peer, ends) = opened_by_peer(lab, &wire, Family::V4, &listener, 5000);
        lab.life(&ends, 2);
        let cookie = server.cookie().expect("SO_COOKIE");
        peer.send(RST | ACK, &[]);
        lab.expect_events(ends, "LI>SR S, SR>ES S, rst<, ES>CL S");
        let connection = lab.connection(&ends);
        assert_eq!(connection.socket.cookie, cookie);
        assert!(!connection.gap, "{connection:?}");
        assert!(connection.was_in(State::SYN_RECV));
        lab.expect_events(lab.ends(&listener), "CL>LI P");
    });
}
