//! What operators ask for: actions, a new configuration, a stop.

mod actions;
pub mod reload;
mod stop;
