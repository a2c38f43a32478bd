//! Killing a connection from outside. Several test programs include this file.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

/// SOCK_DESTROY, what `ss -K` does.
pub(crate) fn destroy(local: SocketAddr, remote: SocketAddr) {
    const SOCK_DESTROY: u16 = 21;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const LENGTH: usize = 16 + 56;
    let mut message = [0_u8; LENGTH];
    message[0..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    // struct inet_diag_req_v2: family, protocol, extensions, states, then the ends and a cookie that means any
    message[16] = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    message[17] = libc::IPPROTO_TCP as u8;
    message[20..24].fill(0xff);
    message[24..26].copy_from_slice(&local.port().to_be_bytes());
    message[26..28].copy_from_slice(&remote.port().to_be_bytes());
    for (at, ip) in [(28, local.ip()), (44, remote.ip())] {
        match ip {
            IpAddr::V4(ip) => message[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => message[at..at + 16].copy_from_slice(&ip.octets()),
        }
    }
    message[64..72].fill(0xff);
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_SOCK_DIAG)))
        .expect("a netlink socket");
    socket.send(&message).expect("sent");
    let mut answer = [0; 4096];
    let length = (&socket).read(&mut answer).expect("an answer");
    assert!(length >= 20, "an answer of {length} bytes");
    let error = i32::from_ne_bytes(answer[16..20].try_into().expect("four bytes"));
    assert_eq!(error, 0, "SOCK_DESTROY: {}", std::io::Error::from_raw_os_error(-error));
}
