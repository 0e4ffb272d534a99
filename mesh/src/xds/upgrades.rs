//! To what requests may switch: listeners and routes say it in the same form.

use std::collections::HashSet;

use envoy_types::pb::google::protobuf::BoolValue;

use super::error::{At, Decoded, FieldError, each, non_empty};
use crate::model::Upgrade;

/// Enabled is the default.
pub(super) fn encode_enabled(enabled: bool) -> Option<BoolValue> {
    (!enabled).then_some(BoolValue { value: false })
}

/// Reads the `upgrade_configs` of a listener or a route.
pub(super) fn decode<P>(
    configs: Vec<P>,
    decode_one: impl Fn(P) -> Decoded<Upgrade>,
) -> Decoded<Vec<Upgrade>> {
    let upgrades = each("upgrade_configs", configs, decode_one)?;
    let mut names = HashSet::new();
    for (index, upgrade) in upgrades.iter().enumerate() {
        if !names.insert(upgrade.protocol.to_ascii_lowercase()) {
            let problem = format!("{:?} is there already: name each once", upgrade.protocol);
            return Err(FieldError::new(problem)).at("upgrade_type").at_item("upgrade_configs", index);
        }
    }
    Ok(upgrades)
}

pub(super) fn decode_one(upgrade_type: String, enabled: Option<BoolValue>) -> Decoded<Upgrade> {
    let protocol = non_empty(upgrade_type, "upgrade_type")?;
    Ok(Upgrade { protocol, enabled: enabled.is_none_or(|enabled| enabled.value) })
}
