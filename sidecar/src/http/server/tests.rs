mod framing;
mod smuggling;
