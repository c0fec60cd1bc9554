//! What others see of a client: metrics, and what the service manager is told.

pub mod health;
pub mod metrics;
