//! The delta stream: whatever a control plane sends, response after response, each is answered once, and what is held is
//! what was asked for.

#![no_main]

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use tulle_sidecar::fuzzing::Stream;

fuzz_target!(|input: Vec<Vec<u8>>| {
    let mut stream = Stream::new();
    for bytes in input {
        let Ok(response) = DeltaDiscoveryResponse::decode(bytes.as_slice()) else { continue };
        stream.take(response);
    }
});
