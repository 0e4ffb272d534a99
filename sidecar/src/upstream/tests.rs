mod convert;
mod http1;
mod http2;
mod proxying;
mod tls;
