//! Work between nodes: what a submitter and a node write to each other over a broker.

pub mod assembly;
pub mod wire;

/// Maximum length of the header of a message, bytes.
pub const MAX_HEADER: usize = 64 * 1024;

/// Maximum size of a payload that goes with its manifest, and of a piece of a larger one or of
/// output, bytes.
pub const MAX_PIECE: usize = 64 * 1024;

/// Maximum number of bytes of a payload, and of each stream of output, that are on their way without
/// an acknowledgement of the other side.
pub const WINDOW: u64 = 512 * 1024;

/// Number of bytes after which a receiver acknowledges what it has on disk or has printed.
pub const ACK_EVERY: u64 = WINDOW / 4;
