//! What the kernel side leaves out, and what it counts when it has no room.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::Socket;
use tracer::core::filter::{Family as WantedFamily, SocketFilter};

use crate::{
    lab::{self, BOTH, Ends, Lab, run, run_with},
    net::{self, Family},
};

const WANTED: u16 = 8080;
const OTHER: u16 = 9090;
const CLIENT: u16 = 8081;

#[test]
fn other_namespaces_are_left_out() {
    run(BOTH, |lab| {
        lab::in_new_namespace(|| {
            for family in Family::ALL {
                drop(net::pair(family));
            }
        });
        assert_eq!(lab.life_count(), 0);
        let elsewhere = lab::in_new_namespace(lab::own_netns);
        assert_ne!(elsewhere, lab.netns);
    });
}

/// A listener on a port, and a client that is bound first or not, connected; then the client resets the connection.
fn connect_once(port: u16, bound: bool) -> Ends {
    let family = Family::V4;
    let at = |port| SocketAddr::new(family.loopback(), port);
    let listener = net::socket(family);
    listener.set_reuse_address(true).expect("SO_REUSEADDR");
    listener.bind(&at(port).into()).expect("bound");
    listener.listen(16).expect("listening");
    let client = net::socket(family);
    if bound {
        client.set_reuse_address(true).expect("SO_REUSEADDR");
        client.bind(&at(CLIENT).into()).expect("bound");
    }
    client.connect(&at(port).into()).expect("connected");
    let local = at(net::port_of(&client));
    let server: Socket = net::accept(&listener);
    net::linger_zero(&client);
    drop(client);
    drop(server);
    Ends::new(local, at(port))
}

const CLIENT_EVENTS: &str = "CL>SS P, SS>ES B, ES>CL P, rst>";
const SERVER_EVENTS: &str = "LI>SR S, SR>ES S, rst<, ES>CL S";

fn listener_ends(port: u16) -> Ends {
    Ends::new(SocketAddr::new(Family::V4.loopback(), port), SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
}

/// What passes of a client that is not wanted. As long as its port is not known its events must pass, and so must the
/// one that tells the port, by which userspace sees that it is not wanted.
const UNWANTED_CLIENT: &str = "CL>SS P, SS>ES B";
/// Likewise of a client that was bound.
const UNWANTED_BOUND_CLIENT: &str = "SS>ES B";

/// Likewise of a server's end, when its remote port is not wanted.
fn unwanted_server() -> &'static str {
    if lab::is_kernel_from((6, 15)) {
        return "SR>ES S";
    }
    lab::differs("before 6.15 LI→SR has no remote port: it passes the filter of remote ports");
    "LI>SR S, SR>ES S"
}

#[test]
fn local_ports_are_filtered_and_first_events_kept() {
    let filter = SocketFilter { local_ports: vec![WANTED], ..SocketFilter::default() };
    run_with(BOTH, filter, |lab| {
        let wanted = connect_once(WANTED, false);
        lab.expect_events(listener_ends(WANTED), "CL>LI P, LI>CL P");
        lab.expect_events(wanted.flipped(), SERVER_EVENTS);
        lab.expect_transitions(wanted, UNWANTED_CLIENT);
        lab.expect_transitions(connect_once(OTHER, false), UNWANTED_CLIENT);
        lab.expect_transitions(connect_once(OTHER, true), UNWANTED_BOUND_CLIENT);
        let wanted = connect_once(WANTED, true);
        lab.expect_events(listener_ends(WANTED), "CL>LI P, LI>CL P");
        lab.expect_events(wanted.flipped(), SERVER_EVENTS);
        lab.expect_transitions(wanted, UNWANTED_BOUND_CLIENT);
    });
}

/// At its next connect() a disconnected socket still carries the port that it had (`inet_sport`), which is not the one
/// that it will have.
#[test]
fn a_port_of_the_past_does_not_hide_a_first_event() {
    let filter = SocketFilter { local_ports: vec![40_001], ..SocketFilter::default() };
    run_with(BOTH, filter, |lab| {
        let listener = net::listen(Family::V4, 16);
        let to = SocketAddr::new(Family::V4.loopback(), net::port_of(&listener));
        let at = |port| SocketAddr::new(Family::V4.loopback(), port);
        let client = net::socket(Family::V4);
        net::sysctl("ipv4/ip_local_port_range", "40000 40000");
        client.connect(&to.into()).expect("connected");
        net::disconnect(&client);
        net::sysctl("ipv4/ip_local_port_range", "40001 40001");
        client.connect(&to.into()).expect("connected");
        net::disconnect(&client);
        lab.expect_transitions(Ends::new(at(40_000), to), UNWANTED_CLIENT);
        lab.expect_events(Ends::new(at(40_001), to), CLIENT_EVENTS);
    });
}

#[test]
fn remote_ports_are_filtered() {
    let filter = SocketFilter { remote_ports: vec![WANTED], ..SocketFilter::default() };
    run_with(BOTH, filter, |lab| {
        let wanted = connect_once(WANTED, false);
        // A listener has no remote port, and as far as the kernel side can tell it may yet get one.
        lab.expect_events(listener_ends(WANTED), "CL>LI P, LI>CL P");
        lab.expect_events(wanted, CLIENT_EVENTS);
        lab.expect_transitions(wanted.flipped(), unwanted_server());
        let other = connect_once(OTHER, false);
        lab.expect_events(listener_ends(OTHER), "CL>LI P, LI>CL P");
        lab.expect_transitions(other.flipped(), unwanted_server());
    });
}

#[test]
fn ports_at_either_end_are_filtered() {
    let filter = SocketFilter { ports: vec![WANTED, 1, 65_535], ..SocketFilter::default() };
    run_with(BOTH, filter, |lab| {
        let wanted = connect_once(WANTED, false);
        lab.expect_events(listener_ends(WANTED), "CL>LI P, LI>CL P");
        lab.expect_events(wanted, CLIENT_EVENTS);
        lab.expect_events(wanted.flipped(), SERVER_EVENTS);
        let other = connect_once(OTHER, true);
        lab.expect_events(listener_ends(OTHER), "CL>LI P, LI>CL P");
        lab.expect_transitions(other, UNWANTED_BOUND_CLIENT);
        lab.expect_transitions(other.flipped(), unwanted_server());
    });
}

#[test]
fn families_are_filtered_and_mapped_addresses_are_ipv4() {
    let wanted = |family| SocketFilter { family: Some(family), ..SocketFilter::default() };
    let both_ends = |lab: &mut Lab, family: Family| {
        let net::Pair { listener, client, server } = net::pair(family);
        let ends = Ends::new(
            SocketAddr::new(family.loopback(), net::port_of(&client)),
            SocketAddr::new(family.loopback(), net::port_of(&listener)),
        );
        net::linger_zero(&client);
        drop(client);
        drop(server);
        lab.expect_events(ends, CLIENT_EVENTS);
        lab.expect_events(ends.flipped(), SERVER_EVENTS);
        drop(listener);
        let listening = Ends::new(
            SocketAddr::new(family.bind_address(), ends.remote.port()),
            SocketAddr::new(family.unspecified(), 0),
        );
        lab.expect_events(listening, "CL>LI P, LI>CL P");
    };
    run_with(BOTH, wanted(WantedFamily::V4), |lab| {
        both_ends(lab, Family::V4);
        both_ends(lab, Family::Mapped);
        drop(net::pair(Family::V6));
    });
    run_with(BOTH, wanted(WantedFamily::V6), |lab| {
        both_ends(lab, Family::V6);
        drop(net::pair(Family::V4));
    });
}

#[test]
fn what_finds_no_room_is_counted() {
    for attachment in BOTH {
        lab::in_new_namespace(|| {
            let runtime = lab::runtime();
            let guard = runtime.enter();
            let here = SocketFilter { netns: vec![lab::own_netns()], ..SocketFilter::default() };
            let mut kernel = lab::attach(*attachment, here, 1 << 16);
            drop(guard);
            let listener = net::listen(Family::V4, 16);
            for _ in 0..200 {
                let client = net::connect(Family::V4, net::port_of(&listener));
                let server = net::accept(&listener);
                net::linger_zero(&client);
                drop(client);
                drop(server);
            }
            let mut transitions = 0;
            let delivered = kernel
                .drain(usize::MAX, |event| {
                    transitions += u64::from(matches!(event, tracer::core::transition::Event::Transition(_)));
                })
                .expect("drained");
            let loss = kernel.loss().expect("the loss counters");
            assert!(delivered as u32 >= tracer::source::kernel::records_in(1 << 16) - 1, "{delivered}");
            assert_eq!(loss.seen + loss.missed, 200 * 6 + 1, "{loss:?}");
            assert_eq!(loss.seen - loss.dropped, transitions, "{loss:?}");
            assert!(loss.dropped > 0 && loss.resets_lost > 0, "{loss:?}");
            // There is room again.
            drop(listener);
            assert_eq!(kernel.drain(usize::MAX, |_| {}).expect("drained"), 1);
        });
    }
}
