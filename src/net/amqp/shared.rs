//! The state of a connection, shared by its handles and its task.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::net::amqp::failure::Failure;
use crate::net::amqp::state::State;

/// The state, and what wakes those who wait for it.
pub struct Shared {
    state: Mutex<State>,
    /// Wakes the task: there is output, or a handle has something to say.
    pub wake: Notify,
    /// Wakes publishers that wait for room.
    pub room: Notify,
    /// Wakes who waits for the end of the connection, or for the broker to block or unblock.
    pub news: Notify,
}

impl Shared {
    /// Shares `state`.
    pub fn new(state: State) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            room: Notify::new(),
            news: Notify::new(),
        })
    }

    /// Returns the state, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes the task if there is output now and was none.
    pub fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let (done, wakes) = {
            let mut state = self.lock();
            let was_idle = state.is_idle();
            let was_paused = state.status().paused;
            let done = act(&mut state);
            let status = state.status();
            let resumes = was_paused && !status.paused;
            (
                done,
                resumes || status.ended || was_idle && !state.is_idle(),
            )
        };
        if wakes {
            self.wake.notify_one();
        }
        done
    }

    /// Ends the connection, and wakes all who wait.
    pub fn fail(&self, failure: &Failure) {
        self.lock().fail(failure);
        self.wake.notify_one();
        self.room.notify_waiters();
        self.news.notify_waiters();
    }
}

/// All handles of a connection together: the connection ends with the last.
pub struct Handles(pub Arc<Shared>);

impl Drop for Handles {
    fn drop(&mut self) {
        self.0.change(State::abandon);
    }
}
