//! Development only: what tests of several crates share, above all faults that a machine under test
//! does not show by itself. Nothing here is linked into a product.

pub mod authority;
pub mod disk;
pub mod fake_model;
pub mod keys;
