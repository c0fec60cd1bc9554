//! Errors of SQLite, and their meaning for the operator.

use rusqlite::ErrorCode;

use crate::error::{Error, Kind};

/// Returns the error of a failed read.
pub(super) fn wrong(e: rusqlite::Error) -> Error {
    let kind = if passes(&e) {
        Kind::TryAgain
    } else {
        Kind::CannotCreate
    };
    Error::new(kind, format!("read the ledger: {e}"))
}

/// Returns the kind of a lasting error: only damage outlives a restart.
pub(super) fn lasting(error: &rusqlite::Error) -> Kind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::CannotCreate,
        _ => Kind::TryAgain,
    }
}

/// Returns whether the error may be over in a moment.
pub(super) fn passes(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
        )
    )
}
