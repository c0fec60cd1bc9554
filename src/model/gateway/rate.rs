//! A limit on requests for each caller: a token bucket, kept as the time at which it is full again
//! (the generic cell rate algorithm, ITU-T I.371).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Maximum number of callers with a bucket of their own. Others share one.
pub const MAX_CALLERS: usize = 4096;

/// Minimum time between two looks for full buckets, which are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// Length of the prefix that counts as one caller, for IPv6 addresses: a host has all addresses of
/// it (RFC 6177).
const IPV6_PREFIX: u32 = 64;

/// Who is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The token of that place in the list of tokens.
    Token(usize),
    /// An address; for IPv6 its network.
    Address(IpAddr),
    /// A caller without an address: the Unix socket.
    Local,
}

impl Caller {
    /// Returns the caller at `address`.
    #[must_use]
    pub fn at(address: Option<IpAddr>) -> Self {
        let Some(address) = address else {
            return Self::Local;
        };
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let bits = 128 - IPV6_PREFIX;
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> bits << bits))
            }
            address => address,
        })
    }
}

/// Requests that callers may make.
#[derive(Debug)]
pub struct Rate {
    /// Time in which one request more becomes free.
    interval: Duration,
    /// Time in which an empty bucket becomes full.
    whole: Duration,
    /// When the bucket of a caller is full again.
    full_at: HashMap<Caller, Instant>,
    /// The same of the bucket that is shared.
    shared: Option<Instant>,
    swept: Option<Instant>,
}

impl Rate {
    /// Makes a limit of `per_minute` requests, which may all come at once; none for 0.
    #[must_use]
    pub fn of(per_minute: u32) -> Option<Self> {
        (per_minute > 0).then(|| Self::new(per_minute, per_minute))
    }

    /// Makes a limit of `per_minute` requests, of which `burst` may come at once; both are 1 at
    /// least.
    #[must_use]
    pub fn new(per_minute: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(60) / per_minute.max(1);
        Self {
            interval,
            whole: interval.saturating_mul(burst.max(1)),
            full_at: HashMap::new(),
            shared: None,
            swept: None,
        }
    }

    /// Takes a request of `caller` out of its bucket.
    ///
    /// # Errors
    /// The time after which there is a request in the bucket, more than zero.
    pub fn take(&mut self, caller: Caller, now: Instant) -> Result<(), Duration> {
        let is_known = self.full_at.contains_key(&caller);
        if !is_known && self.full_at.len() >= MAX_CALLERS {
            self.sweep(now);
        }
        let has_own = is_known || self.full_at.len() < MAX_CALLERS;
        let full_at = match has_own {
            true => self.full_at.get(&caller).copied(),
            false => self.shared,
        };
        let full_at = full_at.map_or(now, |at| at.max(now)) + self.interval;
        let ahead = full_at.saturating_duration_since(now);
        if let Some(wait) = ahead.checked_sub(self.whole).filter(|w| !w.is_zero()) {
            return Err(wait);
        }
        match has_own {
            true => {
                self.full_at.insert(caller, full_at);
            }
            false => self.shared = Some(full_at),
        }
        Ok(())
    }

    /// Returns whether callers share a bucket, because there are too many of them.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.full_at.len() >= MAX_CALLERS
    }

    /// Forgets full buckets: they are as good as new ones.
    fn sweep(&mut self, now: Instant) {
        if (self.swept).is_some_and(|at| now.saturating_duration_since(at) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        self.full_at.retain(|_, full_at| *full_at > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(n: u32) -> Caller {
        Caller::at(Some(IpAddr::V4(n.into())))
    }

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let (mut rate, start) = (Rate::new(60, 3), Instant::now());
        for _ in 0..3 {
            assert_eq!(rate.take(Caller::Local, start), Ok(()));
        }
        assert_eq!(rate.take(Caller::Local, start), Err(SECOND));
        // A refused request costs nothing, and others have their own bucket.
        assert_eq!(rate.take(Caller::Local, start), Err(SECOND));
        assert_eq!(rate.take(Caller::Token(0), start), Ok(()));
        assert_eq!(rate.take(Caller::Local, start + SECOND), Ok(()));
        assert_eq!(rate.take(Caller::Local, start + SECOND), Err(SECOND));
        // A pause fills the bucket, and no more than that.
        let later = start + 100 * SECOND;
        let passed = (0..9).filter(|_| rate.take(Caller::Local, later).is_ok());
        assert_eq!(passed.count(), 3);
    }

    #[test]
    fn a_host_has_one_bucket_for_all_its_addresses() {
        let at = |text: &str| Caller::at(Some(text.parse().expect("address")));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1:2:3"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    #[test]
    fn the_table_is_bounded_and_the_rest_shares() {
        let (mut rate, start) = (Rate::new(60, 2), Instant::now());
        let callers = u32::try_from(MAX_CALLERS).expect("number");
        for n in 0..callers {
            assert_eq!(rate.take(address(n), start), Ok(()));
        }
        assert!(rate.is_crowded());
        let more = (0..9).filter(|n| rate.take(address(callers + n), start).is_ok());
        assert_eq!(more.count(), 2);
        assert_eq!(rate.full_at.len(), MAX_CALLERS);
        // Those with a bucket keep it.
        assert_eq!(rate.take(address(0), start), Ok(()));
        assert!(rate.take(address(0), start).is_err());
        // Full buckets make room.
        let later = start + 2 * SECOND;
        assert_eq!(rate.take(address(callers), later), Ok(()));
        assert!(rate.full_at.len() < 3 && !rate.is_crowded());
    }

    proptest! {
        #[test]
        fn no_more_than_the_rate_passes(
            waits in prop::collection::vec(0_u64..3000, 1..200),
            per_minute in 1_u32..600,
            burst in 1_u32..20,
        ) {
            let (mut rate, start) = (Rate::new(per_minute, burst), Instant::now());
            let (mut now, mut passed) = (start, 0_u64);
            for wait in waits {
                now += Duration::from_millis(wait);
                match rate.take(Caller::Local, now) {
                    Ok(()) => passed += 1,
                    Err(after) => {
                        // The time it tells is right.
                        prop_assert!(!after.is_zero());
                        prop_assert_eq!(rate.take(Caller::Local, now + after), Ok(()));
                        (passed, now) = (passed + 1, now + after);
                    }
                }
            }
            let spent = (now - start).as_nanos();
            let free = spent / (Duration::from_secs(60) / per_minute).as_nanos();
            prop_assert!(u128::from(passed) <= free + u128::from(burst));
        }
    }
}
