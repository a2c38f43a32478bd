//! The two ends of a connection, in one form for IPv4, IPv6 and the v4-mapped addresses of dual-stack sockets.

use std::{
    fmt,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

/// An IP address as 16 bytes; IPv4 is kept v4-mapped, so that a dual-stack server's `::ffff:10.0.0.1` and `10.0.0.1`
/// are the same address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "IpAddr", into = "IpAddr")]
pub struct Address([u8; 16]);

impl Address {
    /// `::`, the address of a socket that has none.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// The longest text of one: `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`.
    pub const TEXT_BYTES: usize = 45;

    /// From the four bytes of an IPv4 address.
    #[must_use]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        let [a, b, c, d] = bytes;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// From the sixteen bytes of an IPv6 address.
    #[must_use]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The sixteen bytes.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        self.0
    }

    /// The address as people write it: IPv4 when it is v4-mapped.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }

    /// As people write it, in a buffer: an address is written twice for each transition, and the general formatter takes
    /// longer than all the rest.
    #[must_use]
    pub fn text(self, buffer: &mut [u8; Self::TEXT_BYTES]) -> &str {
        match self.ip() {
            IpAddr::V4(ip) => dotted(ip.octets(), buffer),
            IpAddr::V6(ip) => {
                let mut rest = buffer.as_mut_slice();
                // It has room for the longest.
                let _ = write!(rest, "{ip}");
                let length = Self::TEXT_BYTES - rest.len();
                std::str::from_utf8(&buffer[..length]).unwrap_or_default()
            }
        }
    }

    /// True for `0.0.0.0` and `::`.
    #[must_use]
    pub fn is_unspecified(self) -> bool {
        self == Self::UNSPECIFIED || self == Self::v4([0; 4])
    }

    /// True for IPv4, v4-mapped included.
    #[must_use]
    pub fn is_v4(self) -> bool {
        self.ip().is_ipv4()
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        address.ip()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::v4(Ipv4Addr::octets(&ip)),
            IpAddr::V6(ip) => Self::v6(Ipv6Addr::octets(&ip)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text(&mut [0; Self::TEXT_BYTES]))
    }
}

/// `10.0.0.1`.
fn dotted(octets: [u8; 4], text: &mut [u8; Address::TEXT_BYTES]) -> &str {
    let mut length = 0;
    let mut push = |byte: u8| {
        text[length] = byte;
        length += 1;
    };
    for (number, octet) in octets.into_iter().enumerate() {
        if number > 0 {
            push(b'.');
        }
        if octet >= 100 {
            push(b'0' + octet / 100);
        }
        if octet >= 10 {
            push(b'0' + octet / 10 % 10);
        }
        push(b'0' + octet % 10);
    }
    std::str::from_utf8(&text[..length]).unwrap_or_default()
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address and a port; port 0 is a port that is not known (yet).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// The IP address.
    pub address: Address,
    /// The port, 0 when not bound or not known.
    pub port: u16,
}

impl Endpoint {
    /// Nothing known.
    pub const UNKNOWN: Self = Self { address: Address::UNSPECIFIED, port: 0 };

    /// Puts the ends together.
    #[must_use]
    pub fn new(address: impl Into<Address>, port: u16) -> Self {
        Self { address: address.into(), port }
    }

    /// From a record's bytes: an IPv6 address, or an IPv4 address in the first four.
    #[must_use]
    pub fn from_bytes(ipv6: bool, bytes: [u8; 16], port: u16) -> Self {
        let [a, b, c, d, ..] = bytes;
        let address = if ipv6 { Address::v6(bytes) } else { Address::v4([a, b, c, d]) };
        Self { address, port }
    }

    /// Takes over what a later event knows, and never replaces something known by zeros: at a CLOSE after disconnect,
    /// or of a listener, the kernel has wiped the addresses already.
    pub fn refresh(&mut self, later: Self) {
        if later.port != 0 {
            self.port = later.port;
        }
        if !later.address.is_unspecified() || self.address == Address::UNSPECIFIED {
            self.address = later.address;
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address.ip() {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.port),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What no two sockets of one network namespace can have in common at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Tuple {
    /// The network namespace, as its inode number.
    pub netns: u32,
    /// This host's end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
}

impl Tuple {
    /// Whether both ports are known, so that the tuple names one connection.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.local.port != 0 && self.remote.port != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v4_mapped_address_is_the_ipv4_address() {
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().expect("an address");
        let plain: IpAddr = "10.1.2.3".parse().expect("an address");
        assert_eq!(Address::from(mapped), Address::from(plain));
        assert_eq!(Address::from(mapped).to_string(), "10.1.2.3");
        assert!(Address::from(mapped).is_v4());
    }

    #[test]
    fn every_ipv4_address_is_written_as_the_standard_library_does() {
        for byte in 0..=255 {
            let octets = [byte, 255 - byte, 9, 100];
            assert_eq!(Address::v4(octets).to_string(), Ipv4Addr::from(octets).to_string());
        }
        assert_eq!(format!("{:<12}|", Address::v4([10, 0, 0, 1])), "10.0.0.1    |");
    }

    #[test]
    fn endpoints_print_as_ss_does() {
        let v6: IpAddr = "fe80::1".parse().expect("an address");
        assert_eq!(Endpoint::new(v6, 80).to_string(), "[fe80::1]:80");
        assert_eq!(Endpoint::new(Address::v4([127, 0, 0, 1]), 80).to_string(), "127.0.0.1:80");
    }

    #[test]
    fn known_ends_are_never_replaced_by_zeros() {
        let known = Endpoint::new(Address::v4([127, 0, 0, 1]), 80);
        let mut end = known;
        end.refresh(Endpoint::UNKNOWN);
        assert_eq!(end, known);
        end.refresh(Endpoint::new(Address::v4([0; 4]), 0));
        assert_eq!(end, known);
        let mut end = Endpoint::UNKNOWN;
        end.refresh(known);
        assert_eq!(end, known);
    }
}
