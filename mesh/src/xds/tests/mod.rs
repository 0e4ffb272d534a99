use proptest::prelude::*;

use super::*;

mod arbitrary;
mod emitted;
mod foreign;
mod names;
mod per_route;
mod refused;
mod widened;

/// Any resource of any type.
fn resource() -> impl Strategy<Value = Resource> {
    prop_oneof![
        arbitrary::listener().prop_map(Resource::Listener),
        arbitrary::route_configuration().prop_map(Resource::Route),
        arbitrary::cluster().prop_map(Resource::Cluster),
        arbitrary::assignment().prop_map(Resource::Endpoint),
        arbitrary::secret().prop_map(Resource::Secret),
        arbitrary::dns_name().prop_map(Resource::Dns),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back_the_same(resource in resource()) {
        let any = resource.encode();
        prop_assert_eq!(&any.type_url, resource.type_url());
        let decoded = Resource::decode(&any.type_url, &any.value);
        prop_assert_eq!(decoded.as_ref().map_err(ToString::to_string), Ok(&resource));
    }

    #[test]
    fn the_same_model_gives_the_same_bytes(resource in resource()) {
        let bytes = resource.encode_bytes();
        // Every hash map has its own seed, so an order that depended on one would differ between these.
        for _ in 0..4 {
            prop_assert_eq!(&resource.clone().encode_bytes(), &bytes);
        }
        let decoded = Resource::decode(resource.type_url(), &bytes).unwrap();
        prop_assert_eq!(version(&decoded.encode_bytes()), version(&bytes));
    }

    #[test]
    fn random_bytes_are_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        for kind in Kind::ALL {
            let _ = Resource::decode(kind.type_url(), &bytes);
        }
    }

    #[test]
    fn damaged_resources_are_never_a_panic(
        resource in resource(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        end in any::<prop::sample::Index>(),
        cut in prop::bool::weighted(0.2),
    ) {
        let mut bytes = resource.encode_bytes();
        prop_assume!(!bytes.is_empty());
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(end.index(bytes.len()));
        }
        for kind in Kind::ALL {
            // What is accepted can be written and read again.
            if let Ok(decoded) = Resource::decode(kind.type_url(), &bytes) {
                let again = Resource::decode(kind.type_url(), &decoded.encode_bytes());
                prop_assert!(again.is_ok(), "{}", again.unwrap_err());
            }
        }
    }
}

#[test]
fn a_version_is_a_hash_of_the_content() {
    assert_eq!(version(b""), "e3b0c44298fc1c14");
    assert_ne!(version(b"a"), version(b"b"));
}

#[test]
fn an_unknown_type_is_named() {
    let error = Resource::decode("type.googleapis.com/envoy.service.runtime.v3.Runtime", b"").unwrap_err();
    assert!(error.to_string().contains("envoy.service.runtime.v3.Runtime"), "{error}");
    assert_eq!(error.resource_name(), None);
}

#[test]
fn the_kinds_are_those_of_envoys_types() {
    use envoy_types::pb::envoy::config::{cluster, endpoint, listener, route};
    use envoy_types::pb::envoy::data::dns;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls;
    use prost::Name;
    assert_eq!(type_url::LISTENER, listener::v3::Listener::type_url());
    assert_eq!(type_url::ROUTE, route::v3::RouteConfiguration::type_url());
    assert_eq!(type_url::CLUSTER, cluster::v3::Cluster::type_url());
    assert_eq!(type_url::ENDPOINT, endpoint::v3::ClusterLoadAssignment::type_url());
    assert_eq!(type_url::SECRET, tls::v3::Secret::type_url());
    assert_eq!(type_url::DNS, dns::v3::DnsTable::type_url());
}
