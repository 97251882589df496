//! What an IP address belongs to, by the IANA special-purpose registries (RFC 6890).
//!
//! Only [`AddressClass::Public`] may be reached without having been named explicitly. An IPv6
//! address that carries an IPv4 one is judged as the one that it carries, since that is where the
//! bytes go. Tunnels that hide their far end (6to4, Teredo) are never public.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// What an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// Global unicast.
    Public,
    /// This machine: 127.0.0.0/8, `::1`.
    Loopback,
    /// A cloud's metadata service, which hands out credentials: 169.254.169.254, `fd00:ec2::254`
    /// and the like.
    Metadata,
    /// 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, `fc00::/7`, `fec0::/10`.
    Private,
    /// 169.254.0.0/16, `fe80::/10`.
    LinkLocal,
    /// 100.64.0.0/10, shared by the customers of a carrier.
    CarrierNat,
    /// 0.0.0.0/8, `::`; Linux takes a connection to them as one to itself.
    Unspecified,
    /// 224.0.0.0/4, `ff00::/8`.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// Documentation, benchmarks, tunnels, and ranges that nobody has been given.
    Reserved,
}

impl AddressClass {
    /// The class in words, for messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Loopback => "loopback",
            Self::Metadata => "cloud metadata",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::CarrierNat => "carrier-grade NAT",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Reserved => "reserved",
        }
    }
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether an address may be reached without having been named explicitly.
pub fn is_public(address: IpAddr) -> bool {
    classify(address) == AddressClass::Public
}

/// The IPv4 address that an IPv6 address stands for: mapped (`::ffff:0:0/96`), compatible
/// (`::/96`), or translated by NAT64 (`64:ff9b::/96`, RFC 6052). Any other comes back as it is.
pub fn carried(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let segments = v6.segments();
    let v4 = || {
        let [a, b] = segments[6].to_be_bytes();
        let [c, d] = segments[7].to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => v4(),
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0, _, _] => v4(),
        _ => address,
    }
}

/// What an address belongs to.
pub fn classify(address: IpAddr) -> AddressClass {
    match carried(address) {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6),
    }
}

fn classify_v4(address: Ipv4Addr) -> AddressClass {
    match address.octets() {
        // AWS, GCP, Azure and most others; AWS containers; Alibaba; Azure's wire server, which is
        // a public address in form only.
        [169, 254, 169, 254]
        | [169, 254, 170, 2 | 23]
        | [100, 100, 100, 200]
        | [168, 63, 129, 16] => AddressClass::Metadata,
        [0, ..] => AddressClass::Unspecified,
        [127, ..] => AddressClass::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => AddressClass::Private,
        [169, 254, ..] => AddressClass::LinkLocal,
        [100, 64..=127, ..] => AddressClass::CarrierNat,
        [224..=239, ..] => AddressClass::Multicast,
        [255, 255, 255, 255] => AddressClass::Broadcast,
        // IETF protocol assignments, documentation, 6to4 relays, benchmarks, class E.
        [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => AddressClass::Reserved,
        _ => AddressClass::Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> AddressClass {
    match address.segments() {
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254 | 0x23] => AddressClass::Metadata,
        [0, 0, 0, 0, 0, 0, 0, 0] => AddressClass::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressClass::Loopback,
        [first, ..] if first & 0xfe00 == 0xfc00 => AddressClass::Private,
        [first, ..] if first & 0xffc0 == 0xfec0 => AddressClass::Private,
        [first, ..] if first & 0xffc0 == 0xfe80 => AddressClass::LinkLocal,
        [first, ..] if first & 0xff00 == 0xff00 => AddressClass::Multicast,
        // Documentation; 6to4; IETF protocol assignments, among them Teredo and ORCHID.
        [0x2001, 0xdb8, ..] | [0x2002, ..] | [0x2001, 0..=0x1ff, ..] => AddressClass::Reserved,
        [0x3fff, 0..=0xfff, ..] => AddressClass::Reserved,
        // Only 2000::/3 has been given out as global unicast.
        [first, ..] if first & 0xe000 == 0x2000 => AddressClass::Public,
        _ => AddressClass::Reserved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_has_its_class() {
        let check = |address: &str, expect: AddressClass| {
            assert_eq!(classify(address.parse().unwrap()), expect, "{address}");
        };
        check("93.184.216.34", AddressClass::Public);
        check("1.1.1.1", AddressClass::Public);
        check("2606:2800:220:1::1", AddressClass::Public);
        check("127.0.0.1", AddressClass::Loopback);
        check("127.255.255.254", AddressClass::Loopback);
        check("::1", AddressClass::Loopback);
        check("169.254.169.254", AddressClass::Metadata);
        check("169.254.170.2", AddressClass::Metadata);
        check("100.100.100.200", AddressClass::Metadata);
        check("168.63.129.16", AddressClass::Metadata);
        check("fd00:ec2::254", AddressClass::Metadata);
        check("10.1.2.3", AddressClass::Private);
        check("172.15.0.1", AddressClass::Public);
        check("172.16.0.1", AddressClass::Private);
        check("172.31.255.255", AddressClass::Private);
        check("172.32.0.1", AddressClass::Public);
        check("192.168.0.1", AddressClass::Private);
        check("fd12::1", AddressClass::Private);
        check("fec0::1", AddressClass::Private);
        check("169.254.0.1", AddressClass::LinkLocal);
        check("fe80::1", AddressClass::LinkLocal);
        check("100.64.0.1", AddressClass::CarrierNat);
        check("100.128.0.1", AddressClass::Public);
        check("0.0.0.0", AddressClass::Unspecified);
        check("0.1.2.3", AddressClass::Unspecified);
        check("::", AddressClass::Unspecified);
        check("224.0.0.1", AddressClass::Multicast);
        check("ff02::1", AddressClass::Multicast);
        check("255.255.255.255", AddressClass::Broadcast);
        check("240.0.0.1", AddressClass::Reserved);
        check("192.0.2.1", AddressClass::Reserved);
        check("198.18.0.1", AddressClass::Reserved);
        check("2001:db8::1", AddressClass::Reserved);
        check("4000::1", AddressClass::Reserved);
    }

    #[test]
    fn an_address_inside_an_address_is_the_one_that_counts() {
        let check = |address: &str, expect: AddressClass| {
            assert_eq!(classify(address.parse().unwrap()), expect, "{address}");
        };
        check("::ffff:127.0.0.1", AddressClass::Loopback);
        check("::ffff:169.254.169.254", AddressClass::Metadata);
        check("::ffff:93.184.216.34", AddressClass::Public);
        check("::10.0.0.1", AddressClass::Private);
        check("64:ff9b::a00:1", AddressClass::Private);
        check("64:ff9b::5db8:d822", AddressClass::Public);
        // Local-use NAT64, 6to4 and Teredo: wherever they lead, it is not said here.
        check("64:ff9b:1::a00:1", AddressClass::Reserved);
        check("2002:7f00:1::", AddressClass::Reserved);
        check("2001:0:4136:e378:8000:63bf:3fff:fdd2", AddressClass::Reserved);
    }
}
