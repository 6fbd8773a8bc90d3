//! The lab: a controller and several real hosts on one machine, isolated from it and from everything else.
//! Owns how they are started, broken and taken down; refuses to know what is done on them (that is `story/` and the tests).

pub mod alone;
pub mod archive;
pub mod bench;
pub mod chaos;
pub mod container;
pub mod counting;
pub mod crash;
pub mod dockerd;
pub mod engines;
pub mod face;
pub mod failing;
pub mod fuzz;
pub mod lab;
pub mod load;
pub mod probe;
pub mod program;
pub mod races;
pub mod run;
pub mod scale;
pub mod storm;
pub mod story;
pub mod tools;
pub mod wait;
