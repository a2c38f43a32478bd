//! Without the kernel's types (BTF): the tracepoint's own fields are all there is, and nothing is made up.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use nix::mount::{MsFlags, mount};
use tracer::{
    core::{
        endpoint::Endpoint,
        filter::SocketFilter,
        state::State,
        transition::{Context, Event, Transition},
    },
    source::kernel::{Attachment, Kernel, Options},
};

use crate::{
    lab,
    net::{self, Family},
};

/// Namespaces are not told apart now: nobody else uses this address.
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 88, 79, 67));

fn hide_types() {
    if !Path::new("/sys/kernel/btf").exists() {
        return;
    }
    let none = None::<&str>;
    mount(Some("tmpfs"), "/sys/kernel/btf", Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs over the types");
}

#[test]
fn the_tracepoints_own_fields_are_there_and_no_other() {
    lab::in_new_namespace(|| {
        hide_types();
        let runtime = lab::runtime();
        let guard = runtime.enter();
        // The best there is, which is taken without being asked for.
        let options = Options { buffer_bytes: 8 << 20, filter: SocketFilter::default(), attachment: None };
        let mut kernel = Kernel::attach(&options).expect("attached");
        drop(guard);
        assert_eq!(kernel.attachment(), Attachment::Tracepoint);
        assert!(!kernel.has_details());
        let notes = kernel.notes();
        assert!(notes.len() == 1 && notes[0].contains("stay empty"), "{notes:?}");

        let listener = net::listen_at(Family::V4, OWN, 16);
        let at = |port| SocketAddr::new(OWN, port);
        let client = net::socket(Family::V4);
        client.bind(&at(0).into()).expect("bound");
        client.connect(&at(net::port_of(&listener)).into()).expect("connected");
        let server = net::accept(&listener);
        let ports = [net::port_of(&client), net::port_of(&server)];
        net::quick_ack(&server);
        drop(client);
        net::read_end(&server);
        drop(server);

        let mut seen: Vec<Transition> = Vec::new();
        net::eventually("closed", || {
            let sink = |event| {
                if let Event::Transition(transition) = event {
                    seen.push(transition);
                }
            };
            kernel.drain(usize::MAX, sink).expect("drained");
            seen.retain(|transition| transition.tuple.local.address == OWN.into());
            seen.iter().filter(|transition| transition.new == State::CLOSE).count() == 2
        });
        drop(listener);
        for (local, remote, states) in [
            (ports[0], ports[1], "SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE"),
            (ports[1], ports[0], "SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE"),
        ] {
            let is_child_unfinished = |transition: &Transition| {
                transition.old == State::LISTEN && transition.tuple.remote.port == 0 && !lab::is_kernel_from((6, 15))
            };
            let life: Vec<_> = seen
                .iter()
                .filter(|transition| transition.tuple.local.port == local && transition.new != State::LISTEN)
                .filter(|transition| is_child_unfinished(transition) || transition.tuple.remote.port == remote)
                .collect();
            let path: Vec<String> = life.iter().map(|transition| transition.new.to_string()).collect();
            assert_eq!(path.join(" "), states);
            for transition in life {
                if !is_child_unfinished(transition) {
                    assert_eq!(transition.tuple.remote, Endpoint::new(OWN, remote), "{transition:?}");
                }
                let unknown =
                    (transition.details, transition.context, transition.socket.cookie, transition.tuple.netns);
                assert_eq!(unknown, (None, Context::Unknown, 0, 0), "{transition:?}");
            }
        }
        let loss = kernel.loss().expect("the loss counters");
        assert_eq!(loss.dropped, 0);
        println!("passed with Tracepoint");
    });
}
