//! The server of the guard's tests.

pub(crate) use estoppel_testkit::authority::{Authority as Server, timely};
