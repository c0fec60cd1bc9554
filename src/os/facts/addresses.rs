//! Network interfaces and their addresses (`getifaddrs(3)`).

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

use nix::libc;

/// Maximum number of interfaces, and of addresses of one, that become facts. Hosts of containers
/// have thousands.
const MAX_INTERFACES: usize = 32;
const MAX_ADDRESSES: usize = 16;

/// Interfaces that come and go with containers.
const OF_CONTAINERS: &[&str] = &["veth", "cali", "lxc", "flannel", "cni", "tunl"];

/// Returns the addresses of each interface in order, without those of the host itself.
pub(super) fn of_interfaces() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, address) in all() {
        let is_passing = OF_CONTAINERS.iter().any(|other| name.starts_with(other));
        // Addresses of one link only (fe80::/10) are made of the hardware address.
        let is_own = match address {
            IpAddr::V4(v4) => v4.is_loopback(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        };
        if is_passing || is_own || (found.len() >= MAX_INTERFACES && !found.contains_key(&name)) {
            continue;
        }
        let list = found.entry(name).or_default();
        if list.len() < MAX_ADDRESSES {
            list.push(address.to_string());
        }
    }
    found.values_mut().for_each(|list| list.sort());
    found
}

fn all() -> Vec<(String, IpAddr)> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: the pointer is to a live, writable local of the right type.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: the list is the library's until it is freed below; it ends with a null pointer.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        if entry.ifa_name.is_null() || entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: the name is a C string of the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        // SAFETY: every address begins with its family, and has the size of that family.
        let family = unsafe { (*entry.ifa_addr).sa_family };
        let address = match i32::from(family) {
            libc::AF_INET => {
                // SAFETY: an address of this family is a `sockaddr_in`; it may be unaligned.
                let v4 = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
                IpAddr::V4(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()))
            }
            libc::AF_INET6 => {
                // SAFETY: an address of this family is a `sockaddr_in6`; it may be unaligned.
                let v6 = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
                IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr))
            }
            _ => continue,
        };
        if let Ok(name) = name.to_str() {
            found.push((name.to_owned(), address));
        }
    }
    // SAFETY: the list is from `getifaddrs`, and nothing points into it any more.
    unsafe { libc::freeifaddrs(first) };
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_itself() {
        assert!(all().iter().any(|(_, address)| address.is_loopback()));
        assert!(!of_interfaces().contains_key("lo"));
    }
}
