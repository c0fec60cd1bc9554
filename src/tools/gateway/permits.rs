//! Permits of which each caller has its share.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::gateway::rate::Caller;

/// Who has a permit: a caller, or the gateway itself.
pub type Owner = Option<Caller>;

/// Permits, some of which are always left for an owner that has none, unless there are as many owners.
#[derive(Debug, Clone)]
pub struct Permits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Number of permits.
    all: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    used: usize,
    /// Of each owner that has some.
    own: HashMap<Owner, usize>,
    waiting: VecDeque<Waiting>,
}

/// One that waits for a permit. It has left when its receiver is dropped.
#[derive(Debug)]
struct Waiting {
    owner: Owner,
    tell: oneshot::Sender<Permit>,
}

/// A permit, which is free when this is dropped.
#[derive(Debug)]
pub struct Permit {
    permits: Permits,
    owner: Owner,
}

impl Table {
    fn own(&self, owner: Owner) -> usize {
        self.own.get(&owner).copied().unwrap_or_default()
    }

    /// Returns the share of `owner` of `all`: there are the others that have or want some, itself, and one
    /// that may come.
    fn share(&self, owner: Owner, all: usize) -> usize {
        let mut others: Vec<Owner> = self.own.keys().copied().collect();
        for waiting in &self.waiting {
            if !others.contains(&waiting.owner) {
                others.push(waiting.owner);
            }
        }
        others.retain(|other| *other != owner);
        (all / (others.len() + 2)).max(1)
    }

    /// Returns whether `owner` may have one now.
    fn is_free(&self, owner: Owner, all: usize) -> bool {
        self.used < all && self.own(owner) < self.share(owner, all)
    }

    fn take(&mut self, owner: Owner) {
        self.used += 1;
        *self.own.entry(owner).or_default() += 1;
    }

    fn free(&mut self, owner: Owner) {
        self.used -= 1;
        if let Some(own) = self.own.get_mut(&owner) {
            *own -= 1;
            if *own == 0 {
                self.own.remove(&owner);
            }
        }
    }

    /// Takes a permit for the next one that waits: the first of the owner that has the fewest.
    fn next(&mut self, all: usize) -> Option<Waiting> {
        self.waiting.retain(|waiting| !waiting.tell.is_closed());
        let waiting = self.waiting.iter().enumerate();
        let may = waiting.filter(|(_, waiting)| self.is_free(waiting.owner, all));
        let (place, _) = may.min_by_key(|(_, waiting)| self.own(waiting.owner))?;
        let next = self.waiting.remove(place)?;
        self.take(next.owner);
        Some(next)
    }
}

impl Permits {
    /// Makes `all` permits.
    #[must_use]
    pub fn new(all: usize) -> Self {
        let table = Mutex::default();
        Self(Arc::new(Shared { all, table }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn permit(&self, owner: Owner) -> Permit {
        Permit {
            permits: self.clone(),
            owner,
        }
    }

    /// Returns a permit for `owner` if it has less than its share and one is free.
    #[must_use]
    pub fn try_take(&self, owner: Owner) -> Option<Permit> {
        let mut table = self.table();
        table.is_free(owner, self.0.all).then(|| {
            table.take(owner);
            self.permit(owner)
        })
    }

    /// Waits for a permit for `owner`.
    pub async fn take(&self, owner: Owner) -> Option<Permit> {
        let (tell, told) = oneshot::channel();
        self.table().waiting.push_back(Waiting { owner, tell });
        self.hand_over();
        told.await.ok()
    }

    /// Hands free permits to those that wait.
    fn hand_over(&self) {
        loop {
            let next = self.table().next(self.0.all);
            let Some(Waiting { owner, tell }) = next else {
                return;
            };
            // One that has left frees it again.
            let _ = tell.send(self.permit(owner));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.table().free(self.owner);
        self.permits.hand_over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn owner(last: u8) -> Owner {
        Some(Caller::at(Some([127, 0, 0, last].into())))
    }

    fn all_of(permits: &Permits, who: u8) -> Vec<Permit> {
        std::iter::from_fn(|| permits.try_take(owner(who))).collect()
    }

    #[test]
    fn owners_that_take_all_they_can_leave_one_for_the_next() {
        let permits = Permits::new(8);
        let (first, second) = (all_of(&permits, 1), all_of(&permits, 2));
        assert_eq!((first.len(), second.len()), (4, 2));
        let third = all_of(&permits, 3);
        assert_eq!(third.len(), 2);
        assert!(permits.try_take(None).is_none(), "all are taken");
        drop(second);
        assert!(permits.try_take(owner(1)).is_none());
        assert!(permits.try_take(None).is_some());
        drop((first, third));
        let table = permits.table();
        assert!(table.used == 0 && table.own.is_empty() && table.waiting.is_empty());
    }

    #[test]
    fn one_permit_goes_to_each_in_turn() {
        let permits = Permits::new(1);
        assert_eq!(all_of(&permits, 1).len(), 1);
        assert!(permits.try_take(None).is_some());
    }

    #[tokio::test]
    async fn those_with_the_fewest_are_next_and_those_that_left_are_forgotten() {
        let permits = Permits::new(2);
        let first = permits.take(owner(1)).await.expect("permit");
        let mut context = Context::from_waker(Waker::noop());
        let mut more = pin!(permits.take(owner(1)));
        assert!(more.as_mut().poll(&mut context).is_pending(), "its share");
        {
            let left = pin!(permits.take(owner(1)));
            assert!(left.poll(&mut context).is_pending());
        }
        let second = permits.take(owner(2)).await.expect("permit");
        let mut third = pin!(permits.take(owner(3)));
        assert!(third.as_mut().poll(&mut context).is_pending());
        drop(second);
        let third = third.await.expect("it has none");
        drop(first);
        let more = more.await.expect("its turn");
        drop((third, more));
        assert_eq!(permits.table().waiting.len(), 0);
        assert_eq!(permits.table().used, 0);
    }
}
