//! What can go wrong with a request or a connection, whose fault it is, and whether it is safe to try again.
