mod aliases;
mod bookshop;
mod endpoints;
mod incremental;
mod policies;
mod problems;
mod routes;
mod support;
