//! `tulle-cni`: redirection for clusters that forbid NET_ADMIN to pods, made by the container runtime's own network set-up.
//!
//! As a plugin (spec 0.3.1 to 1.1.0, chained after the one that makes the pod's network): in, the runtime's call on
//! standard input and in the environment; out, the result of the plugin before, unchanged, and the rules of
//! [`crate::redirect`] in the pod's network namespace, if a sidecar was injected that waits for them. It asks nobody: the
//! runtime hands it the pod's annotations. It never touches the namespace that it runs in, and never a pod that is not injected.
//!
//! As an installer: in, the node's folders of plugins and of their configuration; out, the program among the plugins, and
//! one entry in the configuration that is in force, for as long as it runs. Everything else there stays as it is.

mod call;
mod conflist;
mod failure;
mod install;
mod namespace;
mod plugin;
mod pod;

pub use install::{Folders, InstallError, install, is_installed};
pub use plugin::plugin;

/// The plugin's name: that of its file among the plugins, and its `type` in the configuration.
pub const NAME: &str = "tulle-cni";
