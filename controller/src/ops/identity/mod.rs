//! Who may ask, and everything that hangs on it: one file per noun. Roles are looked up when a token is used, never
//! written into it, so that what an administrator takes away is gone at once.

mod caller;
mod door;
mod guesses;
mod roles_at;
mod view;

pub use caller::Caller;
pub use door::Door;
pub use guesses::Knock;
pub use view::Identity;
