//! What rules the kernel has: how many in each chain of our table.
//!
//! In: the table's name. Out: counts. Never changes anything.

use std::collections::BTreeMap;

use super::message::{Answer, answers, dump_rules};
use super::{ENOENT, Netlink, NetlinkError};

/// Counts the rules by chain; none where there is no table.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn rules(table: &str) -> Result<BTreeMap<String, usize>, NetlinkError> {
    let mut counts = BTreeMap::new();
    let mut kernel = Netlink::connect()?;
    kernel.send(&dump_rules(table))?;
    loop {
        for answer in answers(kernel.receive()?) {
            match answer {
                Answer::Rule { table: of, chain } if of == table.as_bytes() => {
                    *counts.entry(String::from_utf8_lossy(chain).into_owned()).or_default() += 1;
                }
                Answer::Rule { .. } => {}
                Answer::End(0 | ENOENT) => return Ok(counts),
                Answer::End(errno) => {
                    return Err(NetlinkError::Refused { label: "a look at the rules".into(), errno });
                }
            }
        }
    }
}
