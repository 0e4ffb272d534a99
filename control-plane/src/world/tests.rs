mod aliases;
mod support;
