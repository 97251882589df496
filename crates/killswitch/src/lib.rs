//! The kill switch as sans-IO state machines.

pub mod frame;
