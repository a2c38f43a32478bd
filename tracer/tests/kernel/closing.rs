//! How connections end in order: FINs.

use std::io::Read as _;

use tracer::{
    core::{snapshot::Socket, state::State},
    source::{
        netns::Namespace,
        sock_diag::{self, Wanted},
    },
};

use crate::{
    child::Child,
    lab::{BOTH, BTF, run},
    net::{self, Family},
    peer::{ACK, FIN, PSH, RST, Wire, opened_by_host, opened_by_peer},
};

#[test]
fn active_and_passive_close() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let net::Pair { listener, client, server } = net::pair(family);
            let ends = lab.ends(&client);
            // The mapped client is bound to nothing else than what the server sees.
            assert_eq!(lab.ends(&server).local, ends.remote);
            net::write(&client, 5);
            net::read(&server, 5);
            net::write(&server, 1000);
            net::read(&client, 1000);
            net::await_sent(&server);
            net::quick_ack(&server);
            drop(client);
            lab.expect(
                ends,
                "CL>SS P, SS>ES B, ES>F1 P, F1>F2 B, F2>CL B",
                "active: SS ES F1 F2 -> active, fin_wait_2; in 1000, out 5; opener",
            );
            net::read_end(&server);
            let server_ends = lab.ends(&server);
            drop(server);
            lab.expect(
                server_ends,
                "LI>SR S, SR>ES S, ES>CW S, CW>LA P, LA>CL B",
                "passive: SR ES CW LA -> passive, none; in 5, out 1000; closer",
            );
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

/// Who reads what came last is not told of the end behind it, and nothing is left in the queue that could tell.
#[test]
fn a_read_of_the_last_data_takes_the_fin_along() {
    run(BTF, |lab| {
        let net::Pair { listener, client, mut server } = net::pair(Family::V4);
        let (client_ends, ends) = (lab.ends(&client), lab.ends(&server));
        net::write(&client, 5);
        drop(client);
        lab.settle("CLOSE_WAIT", |lab| lab.open().iter().any(|life| life.ends_with("CW")));
        let queue = || {
            let own = Namespace::own().expect("a namespace");
            let snapshot = sock_diag::dump(&[own], Wanted::WITH_FILE).expect("a dump");
            let is_it =
                |socket: &&Socket| socket.state == State::CLOSE_WAIT && socket.tuple.local.port == ends.local.port();
            snapshot.sockets.iter().find(is_it).expect("the server's socket").receive_queue
        };
        assert_eq!(queue(), 6, "the FIN counts as one");
        assert_eq!(server.read(&mut [0; 100]).expect("the data"), 5);
        assert_eq!(queue(), 0);
        assert_eq!(server.read(&mut [0; 100]).expect("the end"), 0);
        assert_eq!(queue(), 0);
        lab.expect(
            client_ends,
            "CL>SS P, SS>ES B, ES>F1 P, F1>F2 B, F2>CL B",
            "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 5; opener",
        );
        drop(server);
        lab.expect(
            ends,
            "LI>SR S, SR>ES S, ES>CW S, CW>LA P, LA>CL B",
            "passive: SR ES CW LA -> passive, none; in 5, out 0; closer",
        );
        lab.expect_events(lab.ends(&listener), "CL>LI P");
    });
}

#[test]
fn the_server_closes_first() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let net::Pair { listener, client, server } = net::pair(family);
            let (ends, server_ends) = (lab.ends(&client), lab.ends(&server));
            net::write(&server, 70_000);
            net::read(&client, 70_000);
            net::await_sent(&server);
            net::quick_ack(&client);
            drop(server);
            lab.expect(
                server_ends,
                "LI>SR S, SR>ES S, ES>F1 P, F1>F2 B, F2>CL B",
                "passive: SR ES F1 F2 -> active, fin_wait_2; in 0, out 70000; closer",
            );
            net::read_end(&client);
            drop(client);
            lab.expect(
                ends,
                "CL>SS P, SS>ES B, ES>CW B, CW>LA P, LA>CL B",
                "active: SS ES CW LA -> passive, none; in 70000, out 0; opener",
            );
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

/// On loopback a segment is processed in softirq of whoever sent it, so the current process of the other end's
/// transitions is the peer: plausible, and wrong.
#[test]
fn the_peers_process_is_never_taken_for_the_owner() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let listener = net::listen(family, 16);
            let mut child = Child::start(lab, "child");
            let local = child.connect(family, net::port_of(&listener));
            let server = net::accept(&listener);
            let server_ends = lab.ends(&server);
            assert_eq!(server_ends.remote, local);
            child.order("write 5");
            net::read(&server, 5);
            net::quick_ack(&server);
            child.order("close");
            lab.expect(
                server_ends.flipped().owned_by("child"),
                "CL>SS P, SS>ES B, ES>F1 P, F1>F2 B, F2>CL B",
                "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 5; opener",
            );
            net::read_end(&server);
            drop(server);
            lab.expect(
                server_ends,
                "LI>SR S, SR>ES S, ES>CW S, CW>LA P, LA>CL B",
                "passive: SR ES CW LA -> passive, none; in 5, out 0; closer",
            );

            // And the other way round.
            let mut child = Child::start(lab, "child");
            let port: u16 = child.order(&format!("listen {family:?}")).parse().expect("a port");
            let client = net::connect(family, port);
            child.order("accept");
            let ends = lab.ends(&client);
            child.order("write 3");
            net::read(&client, 3);
            net::quick_ack(&client);
            child.order("close");
            lab.expect(
                ends.flipped().owned_by("child"),
                "LI>SR S, SR>ES S, ES>F1 P, F1>F2 B, F2>CL B",
                "passive: SR ES F1 F2 -> active, fin_wait_2; in 0, out 3; closer",
            );
            net::read_end(&client);
            drop(client);
            lab.expect(
                ends,
                "CL>SS P, SS>ES B, ES>CW S, CW>LA P, LA>CL B",
                "active: SS ES CW LA -> passive, none; in 3, out 0; opener",
            );
            lab.expect_events(lab.ends(&listener), "CL>LI P");
            let mut ends = lab.ends(&listener).owned_by("child").without_socket();
            ends.local.set_port(port);
            child.exit();
            lab.expect_events(ends, "CL>LI P, LI>CL P");
        }
    });
}

#[test]
fn time_wait_is_told_from_the_fin_that_was_received() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let listener = Wire::listen(family, 16);
            let minis = lab.tracker.mini_sockets().count_in(lab.netns);
            let (socket, mut peer, ends) = opened_by_peer(lab, &wire, family, &listener, 5000);
            peer.send(ACK | PSH, b"hello");
            net::read(&socket, 5);
            drop(socket);
            peer.take(FIN);
            // Their FIN acknowledges ours: both steps in one segment.
            peer.send(FIN | ACK, &[]);
            lab.expect(
                ends,
                "LI>SR S, SR>ES S, ES>F1 P, F1>F2 S, F2>CL S",
                "passive: SR ES F1 F2 -> active, time_wait; in 5, out 0; closer",
            );
            assert_eq!(lab.tracker.mini_sockets().count_in(lab.netns), minis + 1);
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

#[test]
fn an_orphan_in_fin_wait2_is_a_mini_socket_at_once() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            drop(socket);
            peer.take(FIN);
            peer.send(ACK, &[]);
            lab.expect_events(ends, "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>CL S");
            let last: Vec<u64> = lab.lives[0].transitions().map(|transition| transition.mono_ns).collect();
            // Where softirq can be preempted something may come in between, but not a minute.
            assert!(last[4] - last[3] < 1_000_000_000, "F1→F2 and F2→CL are one step: {last:?}");
            lab.expect_life(&ends, "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 0; opener");
            // What happens to it now shows nowhere.
            let events = lab.loss().seen;
            peer.send(FIN | ACK, &[]);
            peer.take(ACK);
            lab.drain();
            assert_eq!(lab.loss().seen, events);
            lab.forget_lives();
        }
    });
}

#[test]
fn simultaneous_close() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            net::write(&socket, 4);
            peer.take(PSH);
            peer.send(ACK | PSH, b"hello");
            net::read(&socket, 5);
            let before_fin = peer.expected;
            drop(socket);
            peer.take(FIN);
            peer.send_acking(before_fin, FIN | ACK, &[]);
            lab.life(&ends, 4);
            peer.send(ACK, &[]);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>F1 P, F1>CG S, CG>CL S",
                "active: SS ES F1 CG -> simultaneous, time_wait; in 5, out 4; opener",
            );
        }
    });
}

#[test]
fn shutdown_then_the_peers_fin() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
            peer.take(FIN);
            peer.send(ACK, &[]);
            lab.life(&ends, 4);
            // It may stay so without limit, and still receives.
            peer.send(ACK | PSH, b"hello");
            net::read(&socket, 5);
            assert!(lab.open()[0].ends_with("F2"));
            peer.send(FIN | ACK, &[]);
            net::read_end(&socket);
            // In CLOSE, with its descriptor open; and the close() to come is no transition any more.
            lab.life(&ends, 5);
            drop(socket);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>CL S",
                "active: SS ES F1 F2 -> active, time_wait; in 5, out 0; opener",
            );
        }
    });
}

#[test]
fn a_close_after_shutdown_is_a_transition_to_the_same_state() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            // In FIN_WAIT1
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
            peer.take(FIN);
            drop(socket);
            lab.life(&ends, 4);
            peer.send(FIN | ACK, &[]);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>F1 P, F1>F1 P, F1>F2 S, F2>CL S",
                "active: SS ES F1 F2 -> active, time_wait; in 0, out 0; opener",
            );

            // In FIN_WAIT2: from here on a mini-socket
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 81);
            socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
            peer.take(FIN);
            peer.send(ACK, &[]);
            lab.life(&ends, 4);
            drop(socket);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>F2 P, F2>CL P",
                "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 0; opener",
            );

            // In LAST_ACK
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 82);
            peer.send(FIN | ACK, &[]);
            net::read_end(&socket);
            socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
            peer.take(FIN);
            drop(socket);
            lab.life(&ends, 5);
            peer.send(ACK, &[]);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>CW S, CW>LA P, LA>LA P, LA>CL S",
                "active: SS ES CW LA -> passive, none; in 0, out 0; opener",
            );

            // In CLOSING
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 83);
            let before_fin = peer.expected;
            socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
            peer.take(FIN);
            peer.send_acking(before_fin, FIN | ACK, &[]);
            net::read_end(&socket);
            drop(socket);
            lab.life(&ends, 5);
            peer.send(ACK, &[]);
            lab.expect(
                ends,
                "CL>SS P, SS>ES S, ES>F1 P, F1>CG S, CG>CG P, CG>CL S",
                "active: SS ES F1 CG -> simultaneous, time_wait; in 0, out 0; opener",
            );
        }
    });
}

#[test]
fn passive_close_step_by_step() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        for family in Family::ALL {
            let listener = Wire::listen(family, 16);
            let (socket, mut peer, ends) = opened_by_peer(lab, &wire, family, &listener, 5000);
            let inode = lab.inode_of(&socket);
            // Data with the FIN
            peer.send(FIN | ACK | PSH, b"hello");
            let close_wait = lab.life(&ends, 3).transitions().last().copied().expect("a transition");
            // The leak that the tool is about: the inode is known even though nobody acts.
            assert_eq!(close_wait.details.map(|details| details.inode), Some(inode));
            assert_eq!(lab.tracker.open_in(State::CLOSE_WAIT, 0).count(), 1);
            net::read(&socket, 5);
            net::write(&socket, 7);
            peer.take(PSH);
            peer.send(ACK, &[]);
            drop(socket);
            peer.take(FIN);
            lab.life(&ends, 4);
            peer.send(ACK, &[]);
            lab.expect(
                ends,
                "LI>SR S, SR>ES S, ES>CW S, CW>LA P, LA>CL S",
                "passive: SR ES CW LA -> passive, none; in 5, out 7; closer",
            );
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

#[test]
fn what_is_not_acknowledged_is_not_counted_as_sent() {
    run(BTF, |lab| {
        let wire = Wire::new();
        let (socket, mut peer, ends) = opened_by_host(lab, &wire, Family::V4, 80);
        net::write(&socket, 4);
        peer.take(PSH);
        peer.send(ACK, &[]);
        net::write(&socket, 100);
        peer.take(PSH);
        peer.send_acking(peer.expected.wrapping_sub(100), RST | ACK, &[]);
        lab.expect(
            ends,
            "CL>SS P, SS>ES S, rst<, ES>CL S",
            "active: SS ES -> reset_received, none, ECONNRESET; in 0, out 4; opener",
        );
    });
}
