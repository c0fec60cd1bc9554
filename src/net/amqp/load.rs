//! What the channels of a connection keep in memory.

/// What the channels of a connection keep in memory.
#[derive(Debug, Default)]
pub struct Load {
    held: usize,
    calls: usize,
}

impl Load {
    /// Returns the size of all happenings that wait for the user, bytes.
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Returns the number of calls that wait for answers.
    pub const fn calls(&self) -> usize {
        self.calls
    }

    /// Notes a happening of this size, bytes.
    pub const fn hold(&mut self, size: usize) {
        self.held += size;
    }

    /// Notes that a happening of this size, bytes, does not wait any more.
    pub const fn let_go(&mut self, size: usize) {
        self.held = self.held.saturating_sub(size);
    }

    /// Notes a call.
    pub const fn called(&mut self) {
        self.calls += 1;
    }

    /// Notes that a call does not wait any more.
    pub const fn answered(&mut self) {
        self.calls = self.calls.saturating_sub(1);
    }
}
