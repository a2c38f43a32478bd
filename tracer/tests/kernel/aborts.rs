//! How connections end out of order: RSTs, of either side.

use std::io::ErrorKind;

use socket2::Socket;
use tracer::source::sysctl;

use crate::{
    child::Child,
    lab::{self, BOTH, BTF, Ends, Lab, run},
    net::{self, Family},
    peer::{ACK, FIN, PSH, Peer, RST, SYN, Wire, opened_by_host, opened_by_peer, peer_address},
};

/// Leads a connection that the host opened into each state, and what it did on the way there.
fn lead_to(state: &str, lab: &mut Lab, wire: &std::rc::Rc<Wire>, family: Family) -> (Socket, Peer, Ends) {
    let (socket, mut peer, ends) = opened_by_host(lab, wire, family, 80);
    let before_fin = peer.expected;
    let shut = |peer: &mut Peer| {
        socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
        peer.take(FIN);
    };
    match state {
        "ES" => {}
        "CW" => peer.send(FIN | ACK, &[]),
        "F1" => shut(&mut peer),
        "F2" => {
            shut(&mut peer);
            peer.send(ACK, &[]);
        }
        "CG" => {
            shut(&mut peer);
            peer.send_acking(before_fin, FIN | ACK, &[]);
        }
        "LA" => {
            peer.send(FIN | ACK, &[]);
            shut(&mut peer);
        }
        _ => panic!("{state}?"),
    }
    (socket, peer, ends)
}

/// The transitions of [`lead_to`].
fn way_to(state: &str) -> (&'static str, &'static str) {
    match state {
        "ES" => ("CL>SS P, SS>ES S", "SS ES"),
        "CW" => ("CL>SS P, SS>ES S, ES>CW S", "SS ES CW"),
        "F1" => ("CL>SS P, SS>ES S, ES>F1 P", "SS ES F1"),
        "F2" => ("CL>SS P, SS>ES S, ES>F1 P, F1>F2 S", "SS ES F1 F2"),
        "CG" => ("CL>SS P, SS>ES S, ES>F1 P, F1>CG S", "SS ES F1 CG"),
        "LA" => ("CL>SS P, SS>ES S, ES>CW S, CW>LA P", "SS ES CW LA"),
        _ => panic!("{state}?"),
    }
}

#[test]
fn the_peers_reset_in_every_state() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            for state in ["ES", "CW", "F1", "F2", "CG", "LA"] {
                let (socket, mut peer, ends) = lead_to(state, lab, &wire, family);
                peer.send(RST | ACK, &[]);
                let (events, states) = way_to(state);
                let error = if state == "CW" { "EPIPE" } else { "ECONNRESET" };
                lab.expect(
                    ends,
                    &format!("{events}, rst<, {state}>CL S"),
                    &format!("active: {states} -> reset_received, none, {error}; in 0, out 0; opener"),
                );
                // close() of what is closed is no transition.
                drop(socket);
            }
        }
    });
}

#[test]
fn a_reset_leaves_the_descriptor_behind() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        let (socket, mut peer, ends) = opened_by_host(lab, &wire, Family::V4, 80);
        peer.send(RST | ACK, &[]);
        let closed = lab.life(&ends, 4).transitions().last().copied().expect("a transition");
        let details = closed.details.expect("details");
        assert_eq!(details.inode, lab.inode_of(&socket), "what tells that someone still holds it");
        assert!(!details.orphaned);
        net::read_error(&socket, ErrorKind::ConnectionReset);
        lab.expect(
            ends,
            "CL>SS P, SS>ES S, rst<, ES>CL S",
            "active: SS ES -> reset_received, none, ECONNRESET; in 0, out 0; opener",
        );
    });
}

#[test]
fn linger_zero_in_every_state() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            for state in ["ES", "CW", "F1", "F2"] {
                let (socket, mut peer, ends) = lead_to(state, lab, &wire, family);
                net::linger_zero(&socket);
                drop(socket);
                let (events, states) = way_to(state);
                peer.take(RST);
                lab.expect(
                    ends,
                    &format!("{events}, {state}>CL P, rst>"),
                    &format!("active: {states} -> reset_sent, none; in 0, out 0; opener"),
                );
            }
        }
    });
}

/// There both FINs are on their way and no RST is sent (tcp_need_reset(), net/ipv4/tcp.c). What the socket holds at the
/// CLOSE is just what it holds when the last ACK arrives while a task has the lock, so nothing is asserted of what the
/// tracker makes of it (docs/kernel.md, "What cannot be told").
#[test]
fn linger_zero_when_both_have_closed() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            for state in ["CG", "LA"] {
                let (socket, mut peer, ends) = lead_to(state, lab, &wire, family);
                net::linger_zero(&socket);
                drop(socket);
                while let Some(flags) = peer.try_take() {
                    assert_eq!(flags & RST, 0, "in {state}");
                }
                lab.expect_events(ends, &format!("{}, {state}>CL P", way_to(state).0));
                assert_eq!(sysctl::mini_socket_count(), Some(0));
            }
        }
    });
}

#[test]
fn linger_zero_over_loopback_with_a_passive_end() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let net::Pair { listener, client, server } = net::pair(family);
            let (ends, server_ends) = (lab.ends(&client), lab.ends(&server));
            net::write(&client, 5);
            net::read(&server, 5);
            net::await_sent(&client);
            net::linger_zero(&server);
            drop(server);
            lab.expect(
                server_ends,
                "LI>SR S, SR>ES S, ES>CL P, rst>",
                "passive: SR ES -> reset_sent, none; in 5, out 0; closer",
            );
            lab.expect(
                ends,
                "CL>SS P, SS>ES B, rst<, ES>CL S",
                "active: SS ES -> reset_received, none, ECONNRESET; in 0, out 5; opener",
            );
            drop(client);
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

#[test]
fn a_close_with_unread_data() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            for (flags, events, states) in
                [(ACK | PSH, "ES>CL P", "SS ES"), (FIN | ACK | PSH, "ES>CW S, CW>CL P", "SS ES CW")]
            {
                let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
                peer.send(flags, b"hello");
                net::await_readable(&socket);
                drop(socket);
                peer.take(RST);
                lab.expect(
                    ends,
                    &format!("CL>SS P, SS>ES S, {events}, rst>"),
                    &format!("active: {states} -> reset_sent, none; in 5, out 0; opener"),
                );
            }
        }
    });
}

#[test]
fn data_after_close_is_answered_by_a_reset() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            // While our FIN is not acknowledged
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            drop(socket);
            peer.take(FIN);
            peer.send_acking(peer.expected.wrapping_sub(1), ACK | PSH, b"hello");
            peer.take(RST);
            lab.expect(
                ends,
                // The kernel treats the data like a RST (tcp_reset()), then sends one.
                "CL>SS P, SS>ES S, ES>F1 P, rst<, F1>CL S, rst>",
                "active: SS ES F1 -> reset_sent, none, ECONNRESET; in 0, out 0; opener",
            );

            // With its acknowledgement: no mini-socket is made.
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 81);
            drop(socket);
            peer.take(FIN);
            peer.send(ACK | PSH, b"hello");
            peer.take(RST);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>CL S, rst>",
                "active: SS ES F1 F2 -> reset_sent, none; in 0, out 0; opener",
            );
        }
    });
}

#[test]
fn data_for_a_mini_socket_resets_the_peer() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        let (socket, mut peer, ends) = opened_by_host(lab, &wire, Family::V4, 80);
        drop(socket);
        peer.take(FIN);
        peer.send(ACK, &[]);
        lab.expect(
            ends,
            "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>CL S",
            "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 0; opener",
        );
        assert_eq!(lab.tracker.mini_sockets().count_in(lab.netns), 1);
        peer.send(ACK | PSH, b"hello");
        peer.take(RST);
        net::eventually("gone", || sysctl::mini_socket_count() == Some(0));
        if !lab::is_kernel_from((6, 10)) {
            lab::differs("before 6.10 the RST of a mini-socket passes no tracepoint: it is known until the next dump");
            lab.drain();
            assert!(lab.mini_resets.is_empty());
            assert_eq!(lab.tracker.mini_sockets().count_in(lab.netns), 1);
            return;
        }
        lab.settle("RST of the mini-socket", |lab| lab.mini_resets.len() == 1);
        assert_eq!(lab.tracker.mini_sockets().count_in(lab.netns), 0, "it is gone");
    });
}

#[test]
fn linger2_below_zero_makes_no_mini_socket() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            net::set_option(&socket, libc::IPPROTO_TCP, libc::TCP_LINGER2, -1);
            drop(socket);
            peer.take(FIN);
            peer.send(ACK, &[]);
            peer.take(RST);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>CL S, rst>",
                "active: SS ES F1 F2 -> reset_sent, none; in 0, out 0; opener",
            );

            // Closed in FIN_WAIT2
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 81);
            net::set_option(&socket, libc::IPPROTO_TCP, libc::TCP_LINGER2, -1);
            socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
            peer.take(FIN);
            peer.send(ACK, &[]);
            lab.life(&ends, 4);
            drop(socket);
            peer.take(RST);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>F2 P, F2>CL P, rst>",
                "active: SS ES F1 F2 -> reset_sent, none; in 0, out 0; opener",
            );
        }
    });
}

#[test]
fn a_listener_closes_with_children_pending() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let listener = Wire::listen(family, 16);
            let mut peers: Vec<Peer> =
                (0..3).map(|peer| Peer::calling(&wire, family, 5000 + peer, net::port_of(&listener), &[])).collect();
            for peer in &mut peers {
                peer.take(SYN | ACK);
                peer.send(ACK, &[]);
                lab.life(&peer.host_ends(), 2);
            }
            // One of them has sent data and gone already.
            peers[2].send(FIN | ACK | PSH, b"hello");
            lab.life(&peers[2].host_ends(), 3);
            let ends = lab.ends(&listener);
            drop(listener);
            lab.expect_events(ends, "CL>LI P, LI>CL P");
            for peer in &mut peers[..2] {
                peer.take(RST);
                lab.expect(
                    peer.host_ends(),
                    "LI>SR S, SR>ES S, ES>CL S, rst>",
                    "passive: SR ES -> reset_sent, none; in 0, out 0; listener",
                );
            }
            lab.expect(
                peers[2].host_ends(),
                "LI>SR S, SR>ES S, ES>CW S, CW>CL S, rst>",
                "passive: SR ES CW -> reset_sent, none; in 5, out 0; listener",
            );
        }
    });
}

#[test]
fn killed_by_another_process() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        let mut killer = Child::start(lab, "killer");
        for family in Family::ALL {
            let kill =
                |killer: &mut Child, ends: &Ends| killer.order(&format!("destroy {} {}", ends.local, ends.remote));
            for state in ["ES", "CW", "F1", "F2", "CG", "LA"] {
                let (socket, mut peer, ends) = lead_to(state, lab, &wire, family);
                kill(&mut killer, &ends);
                let (events, states) = way_to(state);
                // Where both FINs are on their way there is nothing to reset (tcp_need_reset()).
                let resets = !["CG", "LA"].contains(&state);
                let reset = if resets { ", rst>" } else { "" };
                if resets {
                    peer.take(RST);
                }
                lab.expect(
                    ends,
                    &format!("{events}{reset}, {state}>CL K killer"),
                    &format!("active: {states} -> killed, none, ECONNABORTED; in 0, out 0; opener"),
                );
                drop(socket);
            }

            let client = net::socket(family);
            net::begin_connect(&client, &peer_address(family, 80));
            let peer = Peer::called(&wire, family, 80);
            let ends = lab.ends_to(&client, peer.host_ends().remote);
            kill(&mut killer, &ends);
            lab.expect(
                ends,
                "CL>SS P, SS>CL K killer",
                "active: SS -> killed, none, ECONNABORTED; in 0, out 0; opener",
            );
        }
    });
}

#[test]
fn a_listener_killed_by_another_process() {
    run(BOTH, |lab| {
        let mut killer = Child::start(lab, "killer");
        for family in [Family::V4, Family::V6] {
            let listener = net::listen(family, 16);
            let ends = lab.ends(&listener);
            let nobody = Ends::new(ends.local, std::net::SocketAddr::new(family.unspecified(), 0));
            killer.order(&format!("destroy {} {}", ends.local, nobody.remote));
            lab.expect_events(ends, "CL>LI P, LI>CL K killer, CL>CL K killer");
            assert_eq!(lab.tracker.listener_count(), 0);
            assert!(lab.tracker.is_empty());
        }
    });
}

#[test]
fn a_child_not_yet_accepted_may_be_killed() {
    run(BTF, |lab| {
        let wire = Wire::new();
        let mut killer = Child::start(lab, "killer");
        let listener = Wire::listen(Family::V4, 16);
        let mut peer = Peer::calling(&wire, Family::V4, 5000, net::port_of(&listener), &[]);
        peer.take(SYN | ACK);
        peer.send(ACK, &[]);
        let ends = peer.host_ends();
        lab.life(&ends, 2);
        killer.order(&format!("destroy {} {}", ends.local, ends.remote));
        lab.expect(
            ends,
            "LI>SR S, SR>ES S, rst>, ES>CL K killer",
            "passive: SR ES -> killed, none, ECONNABORTED; in 0, out 0; listener",
        );
        lab.expect_events(lab.ends(&listener), "CL>LI P");
    });
}

#[test]
fn a_peer_that_never_read_is_reset_as_well() {
    run(BTF, |lab| {
        let wire = Wire::new();
        let listener = Wire::listen(Family::V6, 16);
        let (socket, mut peer, ends) = opened_by_peer(lab, &wire, Family::V6, &listener, 5000);
        net::write(&socket, 100);
        peer.take(PSH);
        net::linger_zero(&socket);
        drop(socket);
        peer.take(RST);
        lab.expect(ends, "LI>SR S, SR>ES S, ES>CL P, rst>", "passive: SR ES -> reset_sent, none; in 0, out 0; closer");
        lab.expect_events(lab.ends(&listener), "CL>LI P");
    });
}
