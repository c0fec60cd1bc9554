//! Addresses of hosts and networks.

use std::net::IpAddr;

/// An address, or all addresses of a prefix: `192.0.2.7`, `192.0.2.0/24`, `2001:db8::/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Length of the prefix, bits.
    bits: u32,
}

fn number(address: IpAddr) -> (u128, u32) {
    match address.to_canonical() {
        IpAddr::V4(address) => (address.to_bits().into(), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

impl Network {
    /// Parses an address, or an address and the length of a prefix.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is neither an address nor a network such as 192.0.2.0/24");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width = number(address).1;
        let bits = bits.map_or(Ok(width), str::parse).map_err(|_| wrong())?;
        if bits > width {
            return Err(wrong());
        }
        Ok(Self { address, bits })
    }

    /// Returns whether it contains `address`. An IPv4 address that comes over IPv6 counts as
    /// itself.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let ((ours, width), (theirs, other)) = (number(self.address), number(address));
        let differ = (ours ^ theirs).checked_shr(width - self.bits).unwrap_or(0);
        width == other && differ == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses() {
        for (network, address, inside) in [
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "::ffff:192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("0.0.0.0/0", "10.0.0.1", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fe80::1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            let parsed = Network::parse(network).expect(network);
            let address = address.parse().expect("address");
            assert_eq!(parsed.contains(address), inside, "{network} {address}");
        }
        for bad in [
            "",
            "host",
            "1.2.3",
            "1.2.3.4/33",
            "1.2.3.4/x",
            "::/129",
            "1.2.3.4/",
        ] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
    }
}
