//! The program as its users call it: what it prints, and its exit status.

mod analyze;
mod check;
mod explain;
mod inject;
mod install;
mod program;
mod remote;
mod tulle;
