//! How connections end because nothing happens: in the kernel's own time, so each of these takes a second or a few.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tracer::{
    core::{snapshot::SocketKind, tracker::Limits},
    source::{
        netns::Namespace,
        sock_diag::{self, Wanted},
        sysctl,
    },
};

use crate::{
    lab::{BOTH, BTF, run},
    net::{self, Family},
    peer::{ACK, FIN, PSH, Peer, Wire, opened_by_host, opened_by_peer, peer_address},
};

const SHORT: Duration = Duration::from_millis(300);

#[test]
fn nobody_answers_a_connect() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        let connecting: Vec<_> = Family::ALL
            .into_iter()
            .map(|family| {
                let client = net::socket(family);
                client.set_tcp_user_timeout(Some(SHORT)).expect("TCP_USER_TIMEOUT");
                net::begin_connect(&client, &peer_address(family, 80));
                let peer = Peer::called(&wire, family, 80);
                (lab.ends_to(&client, peer.host_ends().remote), client)
            })
            .collect();
        for (ends, client) in connecting {
            lab.expect(ends, "CL>SS P, SS>CL S", "active: SS -> timed_out, none, ETIMEDOUT; in 0, out 0; opener");
            drop(client);
        }
    });
}

#[test]
fn nobody_answers_the_probes_of_keepalive() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        let second = Duration::from_secs(1);
        let keepalive = TcpKeepalive::new().with_time(second).with_interval(second).with_retries(1);
        let mut open = Vec::new();
        for family in Family::ALL {
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            SockRef::from(&socket).set_tcp_keepalive(&keepalive).expect("SO_KEEPALIVE");
            net::write(&socket, 5);
            peer.take(PSH);
            peer.send(ACK, &[]);
            open.push((socket, ends, "rst>, ES>CL S", "SS ES"));

            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 81);
            SockRef::from(&socket).set_tcp_keepalive(&keepalive).expect("SO_KEEPALIVE");
            net::write(&socket, 5);
            peer.take(PSH);
            peer.send(FIN | ACK, &[]);
            open.push((socket, ends, "ES>CW S, rst>, CW>CL S", "SS ES CW"));
        }
        for (socket, ends, events, states) in open {
            lab.expect(
                ends,
                &format!("CL>SS P, SS>ES S, {events}"),
                &format!("active: {states} -> timed_out, none, ETIMEDOUT; in 0, out 5; opener"),
            );
            drop(socket);
        }
    });
}

#[test]
fn nobody_acknowledges_data() {
    run(BOTH, |lab| {
        let wire = Wire::new();
        let mut open = Vec::new();
        for family in Family::ALL {
            let listener = Wire::listen(family, 16);
            let (socket, peer, ends) = opened_by_peer(lab, &wire, family, &listener, 5000);
            socket.set_tcp_user_timeout(Some(SHORT)).expect("TCP_USER_TIMEOUT");
            net::write(&socket, 5);
            open.push((listener, socket, peer, ends));
        }
        for (listener, socket, mut peer, ends) in open {
            lab.life(&ends, 3);
            let closed = *lab.life(&ends, 3).transitions().last().expect("a transition");
            assert!(closed.details.is_some_and(|details| details.retransmits > 0), "{closed:?}");
            lab.expect(
                ends,
                "LI>SR S, SR>ES S, ES>CL S",
                "passive: SR ES -> timed_out, none, ETIMEDOUT; in 0, out 0; listener",
            );
            peer.take(PSH);
            drop(socket);
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

#[test]
fn nobody_acknowledges_the_fin_of_an_orphan() {
    run(BOTH, |lab| {
        net::sysctl("ipv4/tcp_orphan_retries", "1");
        let wire = Wire::new();
        let mut open = Vec::new();
        for family in Family::ALL {
            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 80);
            drop(socket);
            peer.take(FIN);
            open.push((ends, "ES>F1 P, F1>CL S", "SS ES F1"));

            let (socket, mut peer, ends) = opened_by_host(lab, &wire, family, 81);
            peer.send(FIN | ACK, &[]);
            drop(socket);
            peer.take(FIN);
            open.push((ends, "ES>CW S, CW>LA P, LA>CL S", "SS ES CW LA"));
        }
        for (ends, events, states) in open {
            lab.expect(
                ends,
                &format!("CL>SS P, SS>ES S, {events}"),
                &format!("active: {states} -> timed_out, none, ETIMEDOUT; in 0, out 0; opener"),
            );
        }
    });
}

/// An orphan may stay in FIN_WAIT2 for more than a minute: then it is a full socket for all but the last minute.
#[test]
fn a_long_fin_timeout_keeps_the_orphan_a_full_socket_at_first() {
    run(BTF, |lab| {
        net::sysctl("ipv4/tcp_fin_timeout", "61");
        lab.set_limits(Limits { fin_timeout_ns: sysctl::fin_timeout_ns(), ..Limits::default() });
        let wire = Wire::new();
        let (socket, mut peer, ends) = opened_by_host(lab, &wire, Family::V4, 80);
        drop(socket);
        peer.take(FIN);
        peer.send(ACK, &[]);
        assert_eq!(lab.life(&ends, 4).transitions().count(), 4);
        let begun = std::time::Instant::now();
        assert!(lab.open()[0].ends_with("F2"));
        lab.expect_events(ends, "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>CL S");
        assert!(begun.elapsed() > Duration::from_millis(500), "61 s less 60 s: {:?}", begun.elapsed());
        // The mini-socket then lives for the second by which a minute is exceeded, not for a minute.
        let own = Namespace::own().expect("a namespace");
        let snapshot = sock_diag::dump(&[own], Wanted::MINI_SOCKETS).expect("a dump");
        let kernels: Vec<u64> = snapshot
            .sockets
            .iter()
            .filter_map(|socket| match socket.kind {
                SocketKind::Mini { expires_in_ms } => Some(u64::from(expires_in_ms)),
                _ => None,
            })
            .collect();
        let tracers: Vec<u64> = lab
            .tracker
            .mini_sockets()
            .iter()
            .map(|(_, mini)| mini.ends_ns.saturating_sub(snapshot.ended_ns) / 1_000_000)
            .collect();
        lab.expect_life(&ends, "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 0; opener");
        assert_eq!((kernels.len(), tracers.len()), (1, 1));
        assert!(kernels[0].abs_diff(tracers[0]) < 500, "remaining life, ms: {kernels:?} {tracers:?}");
    });
}

/// The default: the mini-socket lives for `tcp_fin_timeout`.
#[test]
fn the_life_of_a_fin_wait2_mini_socket_is_the_fin_timeout() {
    run(BTF, |lab| {
        net::sysctl("ipv4/tcp_fin_timeout", "2");
        lab.set_limits(Limits { fin_timeout_ns: sysctl::fin_timeout_ns(), ..Limits::default() });
        let wire = Wire::new();
        let (socket, mut peer, ends) = opened_by_host(lab, &wire, Family::V4, 80);
        drop(socket);
        peer.take(FIN);
        peer.send(ACK, &[]);
        lab.expect_events(ends, "CL>SS P, SS>ES S, ES>F1 P, F1>F2 S, F2>CL S");
        assert_eq!(lab.tracker.mini_sockets().count_in(lab.netns), 1);
        assert_eq!(sysctl::mini_socket_count(), Some(1));
        let seen = lab.loss().seen;
        lab.settle("end of the mini-socket", |_| sysctl::mini_socket_count() == Some(0));
        lab.settle("the tracker's end of it", |lab| lab.tracker.mini_sockets().count_in(lab.netns) == 0);
        assert_eq!(lab.loss().seen, seen, "its end shows nowhere");
        lab.expect_life(&ends, "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 0; opener");
    });
}
