//! Xds.
