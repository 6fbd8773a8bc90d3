//! The faces: each translates between its protocol and `ops`, and decides nothing.

pub mod hosts;
pub mod native;
pub mod side;
