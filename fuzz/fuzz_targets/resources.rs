//! The mapping of resources: whatever the bytes are, they are taken or refused with words, and what is taken is written and
//! read again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tulle_mesh::model::{Protocol, RouteSource};
use tulle_mesh::route::RouteTable;
use tulle_mesh::xds::{Kind, Resource};

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    match Resource::decode(kind.type_url(), bytes) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(resource) => {
            compile(&resource);
            let written = resource.encode_bytes();
            let again = Resource::decode(kind.type_url(), &written).expect("what is written can be read");
            assert_eq!(again.encode_bytes(), written, "it is written as it was");
        }
    }
});

fn compile(resource: &Resource) {
    let inline = |listener: &tulle_mesh::model::Listener| {
        for chain in &listener.chains {
            if let Protocol::Http(http) = &chain.protocol
                && let RouteSource::Inline(routes) = &http.routes
            {
                let _ = RouteTable::compile(routes);
            }
        }
    };
    match resource {
        Resource::Route(routes) => drop(RouteTable::compile(routes)),
        Resource::Listener(listener) => inline(listener),
        _ => {}
    }
}
