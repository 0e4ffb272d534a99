//! What is held, awaited and refused, as any client of CSDS reads it (`envoy.service.status.v3`, gRFC A40 and A88).
//!
//! Resources are told as they were received. Of secrets only that they are there: a foreign control plane may have sent a key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::status::v3::ClientConfig;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::google::protobuf::Timestamp;
use tulle_mesh::xds::Kind;

use super::cache::{Cache, Knowledge, Names};

/// All that is held, and all that is wanted besides.
pub(super) fn client_config(node: Node, cache: &Cache, wanted: &Names) -> ClientConfig {
    let mut configs = Vec::new();
    for (kind, names) in wanted.iter() {
        let rejected: HashMap<_, _> = cache.rejected(kind).collect();
        for (name, held) in cache.held(kind) {
            configs.push(GenericXdsConfig {
                version_info: held.version.clone(),
                xds_config: (kind != Kind::Secret).then(|| held.raw.clone()),
                last_updated: timestamp(held.updated),
                ..config(kind, name, ClientResourceStatus::Acked, rejected.get(name).copied())
            });
        }
        for name in names {
            let status = match cache.knowledge(kind, name) {
                Knowledge::Held => continue,
                Knowledge::Absent => ClientResourceStatus::DoesNotExist,
                Knowledge::Rejected => ClientResourceStatus::Nacked,
                Knowledge::Unavailable => ClientResourceStatus::Timeout,
                Knowledge::Awaited => ClientResourceStatus::Requested,
            };
            configs.push(config(kind, name, status, rejected.get(name).copied()));
        }
    }
    configs.sort_by(|a, b| (&a.type_url, &a.name).cmp(&(&b.type_url, &b.name)));
    ClientConfig { node: Some(node), generic_xds_configs: configs, ..ClientConfig::default() }
}

/// `None` for what is before 1970, which only a wrong clock tells.
fn timestamp(time: SystemTime) -> Option<Timestamp> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Timestamp {
        seconds: i64::try_from(since.as_secs()).ok()?,
        nanos: since.subsec_nanos().cast_signed(),
    })
}

fn config(
    kind: Kind,
    name: &Arc<str>,
    status: ClientResourceStatus,
    problem: Option<&String>,
) -> GenericXdsConfig {
    let status = if problem.is_some() { ClientResourceStatus::Nacked } else { status };
    GenericXdsConfig {
        type_url: kind.type_url().into(),
        name: name.to_string(),
        client_status: status as i32,
        error_state: problem
            .map(|details| UpdateFailureState { details: details.clone(), ..UpdateFailureState::default() }),
        ..GenericXdsConfig::default()
    }
}
