mod http1;
mod proxying;
