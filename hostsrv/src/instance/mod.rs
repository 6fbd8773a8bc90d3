//! The drivers that make bodies.

pub mod set;
pub mod vm;
