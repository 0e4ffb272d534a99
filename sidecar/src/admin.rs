//! The admin interface on loopback, and health and metrics for everyone.
