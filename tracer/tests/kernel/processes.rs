//! Whose a connection is, and how that process may go.

use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

use crate::{
    child::{self, Child},
    lab::{BOTH, Ends, Lab, run},
    net::{self, Family},
};

const CLOSED: &str = "CL>SS P, SS>ES B, ES>F1 P, F1>F2 B, F2>CL B";
const CLOSED_LIFE: &str = "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 0; opener";

/// A listener, and a child's connection to it, accepted.
fn childs_connection(lab: &mut Lab, family: Family) -> (Socket, Child, Socket, Ends) {
    let listener = net::listen(family, 16);
    let mut child = Child::start(lab, "child");
    child.connect(family, net::port_of(&listener));
    let server = net::accept(&listener);
    let ends = lab.ends(&server).flipped().owned_by("child");
    net::quick_ack(&server);
    (listener, child, server, ends)
}

fn passive_end(lab: &mut Lab, listener: &Socket, server: Socket) {
    net::read_end(&server);
    let ends = lab.ends(&server);
    drop(server);
    lab.expect(
        ends,
        "LI>SR S, SR>ES S, ES>CW S, CW>LA P, LA>CL B",
        "passive: SR ES CW LA -> passive, none; in 0, out 0; closer",
    );
    lab.expect_events(lab.ends(listener), "CL>LI P");
}

#[test]
fn exit_is_a_close() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let (listener, child, server, ends) = childs_connection(lab, family);
            child.exit();
            lab.expect(ends, CLOSED, CLOSED_LIFE);
            passive_end(lab, &listener, server);
        }
    });
}

#[test]
fn kill_9_is_a_close() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let (listener, child, server, ends) = childs_connection(lab, family);
            child.kill();
            lab.expect(ends, CLOSED, CLOSED_LIFE);
            passive_end(lab, &listener, server);
        }
    });
}

#[test]
fn kill_9_with_unread_data_is_a_reset() {
    run(BOTH, |lab| {
        let (listener, child, server, ends) = childs_connection(lab, Family::V4);
        net::write(&server, 5);
        net::await_sent(&server);
        let server_ends = lab.ends(&server);
        child.kill();
        lab.expect(ends, "CL>SS P, SS>ES B, ES>CL P, rst>", "active: SS ES -> reset_sent, none; in 5, out 0; opener");
        lab.expect(
            server_ends,
            "LI>SR S, SR>ES S, rst<, ES>CL S",
            "passive: SR ES -> reset_received, none, ECONNRESET; in 0, out 5; listener",
        );
        lab.expect_events(lab.ends(&listener), "CL>LI P");
    });
}

#[test]
fn of_a_shared_descriptor_the_last_close_counts() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let net::Pair { listener, client, server } = net::pair(family);
            let ends = lab.ends(&client);
            let mut child = Child::start_with(lab, "child", &[&client]);
            child.order("adopt");
            drop(client);
            child.order("write 5");
            net::read(&server, 5);
            assert_eq!(lab.life(&ends, 2).transitions().count(), 2, "the child still has it");
            net::quick_ack(&server);
            child.order("close");
            lab.expect(
                ends,
                "CL>SS P, SS>ES B, ES>F1 P child, F1>F2 B child, F2>CL B child",
                "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 5; opener",
            );
            let server_ends = lab.ends(&server);
            let mut heir = Child::start_with(lab, "heir", &[&server]);
            heir.order("adopt");
            drop(server);
            assert_eq!(lab.life(&server_ends, 3).transitions().count(), 3, "the heir still has it");
            heir.exit();
            // Who accepted a connection is known only once it closes: then it is the closer that is told.
            lab.expect(
                server_ends,
                "LI>SR S, SR>ES S, ES>CW S, CW>LA P heir, LA>CL B heir",
                "passive: SR ES CW LA -> passive, none; in 5, out 0; closer heir",
            );
            lab.expect_events(lab.ends(&listener), "CL>LI P");
        }
    });
}

#[test]
fn a_descriptor_that_was_passed_on_is_closed_by_who_got_it() {
    run(BOTH, |lab| {
        let net::Pair { listener, client, server } = net::pair(Family::V4);
        let ends = lab.ends(&client);
        let (here, there) = Socket::pair(Domain::UNIX, Type::STREAM, None).expect("a pair of sockets");
        let mut child = Child::start_with(lab, "child", &[&there]);
        child.order("adopt");
        drop(there);
        child::pass(&here, &[client.as_raw_fd()]);
        // In flight nobody has a descriptor of it.
        drop(client);
        assert_eq!(lab.life(&ends, 2).transitions().count(), 2);
        child.order("receive");
        net::quick_ack(&server);
        child.order("close");
        lab.expect(
            ends,
            "CL>SS P, SS>ES B, ES>F1 P child, F1>F2 B child, F2>CL B child",
            "active: SS ES F1 F2 -> active, fin_wait_2; in 0, out 0; opener",
        );
        passive_end(lab, &listener, server);
    });
}

#[test]
fn a_listener_that_goes_with_its_process() {
    run(BOTH, |lab| {
        for family in Family::ALL {
            let mut child = Child::start(lab, "child");
            let port: u16 = child.order(&format!("listen {family:?}")).parse().expect("a port");
            let client = net::connect(family, port);
            let ends = lab.ends(&client);
            let served = ends.flipped();
            lab.life(&served, 2);
            let listening = Ends::new(
                std::net::SocketAddr::new(family.bind_address(), port),
                std::net::SocketAddr::new(family.unspecified(), 0),
            );
            child.kill();
            lab.expect_events(listening.owned_by("child"), "CL>LI P, LI>CL P");
            lab.expect(
                served.owned_by("child"),
                "LI>SR S, SR>ES S, ES>CL S, rst>",
                "passive: SR ES -> reset_sent, none; in 0, out 0; listener",
            );
            lab.expect(
                ends,
                "CL>SS P, SS>ES B, rst<, ES>CL S",
                "active: SS ES -> reset_received, none, ECONNRESET; in 0, out 0; opener",
            );
        }
    });
}
