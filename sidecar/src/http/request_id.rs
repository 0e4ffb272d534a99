//! `x-request-id`, by which a request is known along its way.
//!
//! In: a request that has just come. Out: the same, with the ID that all that follows sees: rules, logs, the next hop.

use http::header::Entry;
use http::{HeaderName, HeaderValue};
use tulle_mesh::model::RequestIds;

use super::exchange::Exchange;

/// `x-request-id`
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives a request an ID where it needs one. `external`: it comes from outside, whose word for it does not count.
pub(super) fn assign(exchange: &mut Exchange, ids: RequestIds, external: bool) {
    if !ids.generate {
        return;
    }
    let replace = external && !ids.preserve_external;
    let worker = &exchange.worker;
    let made = || uuid(u128::from(worker.draw_u64()) << 64 | u128::from(worker.draw_u64()));
    match exchange.request.headers.entry(REQUEST_ID) {
        Entry::Vacant(entry) => {
            entry.insert(made());
        }
        Entry::Occupied(mut entry) if replace || entry.get().is_empty() => {
            entry.insert(made());
        }
        Entry::Occupied(_) => {}
    }
}

/// A version 4 UUID (RFC 9562).
fn uuid(random: u128) -> HeaderValue {
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let text = format!("{bits:032x}");
    let text = format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]);
    HeaderValue::from_str(&text).expect("hex digits and dashes are a valid header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_uuid_of_version_4() {
        assert_eq!(uuid(7), "00000000-0000-4000-8000-000000000007");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
