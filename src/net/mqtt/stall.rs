//! Where a test can have the network task of a debug build stand still.

/// Does not return while the file named by `TAEL_TEST_STALL` exists; nothing in a release
/// build.
#[cfg(debug_assertions)]
pub async fn while_wanted() {
    let Some(file) = std::env::var_os("TAEL_TEST_STALL") else {
        return;
    };
    while std::path::Path::new(&file).exists() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Nothing in a release build.
#[cfg(not(debug_assertions))]
pub async fn while_wanted() {}
