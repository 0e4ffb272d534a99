mod framing;
mod http1;
mod smuggling;
