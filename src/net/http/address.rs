//! Addresses to listen on.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Start of the address of a Unix socket.
const UNIX: &str = "unix:";

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Address and port; port 0 selects a free one.
    Tcp(SocketAddr),
    /// A Unix socket, at an absolute path.
    Unix(PathBuf),
}

impl Address {
    /// Parses `ADDRESS:PORT` or `unix:PATH`.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return match path.starts_with('/') && !path.ends_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(format!("'{text}' names no socket: write unix:/PATH")),
            };
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!("'{text}' is not an address with a port, such as 127.0.0.1:8787 or unix:/PATH")
        })
    }

    /// Returns whether only users of this host can connect.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_and_know_who_can_connect() {
        for (text, local) in [
            ("127.0.0.1:8787", true),
            ("127.9.9.9:1", true),
            ("[::1]:8787", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("0.0.0.0:8787", false),
            ("[::]:8787", false),
            ("192.0.2.1:80", false),
            ("unix:/run/tael/http", true),
        ] {
            let address = Address::parse(text).expect(text);
            assert_eq!(address.is_local(), local, "{text}");
            assert_eq!(address.to_string(), text);
        }
        for wrong in ["", "8787", "localhost:8787", "unix:", "unix:a", "unix:/a/"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }
}
