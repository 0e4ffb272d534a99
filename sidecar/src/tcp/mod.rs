//! Raw TCP: connections whose bytes mean nothing to the mesh.

pub(crate) mod copy;
