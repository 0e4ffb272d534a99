//! How much a resource may hold, told before it is taken apart.
//!
//! A message of two bytes becomes a structure of hundreds, so a bound on bytes alone bounds no memory. In: a resource as
//! bytes. Out: whether it may be read. Nothing is allocated.

use prost::encoding::{WireType, decode_key, decode_varint};

/// The most bytes of a resource. A thousand endpoints with names and identities are 150 KB.
const MAX_BYTES: usize = 4 << 20;
/// The most messages and texts in a resource. An endpoint with an identity is about ten.
const MAX_PARTS: usize = 300_000;
/// How deep parts are looked for; protobuf's decoder goes no deeper either.
const MAX_DEPTH: usize = 100;

/// Whether a resource is small enough.
///
/// # Errors
/// When it is not: what it has too much of.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("is {} bytes long: at most {MAX_BYTES} are read", bytes.len()));
    }
    let mut left = MAX_PARTS;
    // What is no message at all is for the decoder to refuse.
    let _ = walk(bytes, MAX_DEPTH, &mut left);
    if left == 0 {
        return Err(format!("has more than {MAX_PARTS} parts: make it smaller"));
    }
    Ok(())
}

/// Takes each part of a message from `left`, and the parts in it. `None`: it is no message, or nothing is left.
fn walk(mut bytes: &[u8], depth: usize, left: &mut usize) -> Option<()> {
    while !bytes.is_empty() && *left > 0 {
        let (_, wire_type) = decode_key(&mut bytes).ok()?;
        match wire_type {
            WireType::Varint => drop(decode_varint(&mut bytes).ok()?),
            WireType::SixtyFourBit => bytes = bytes.get(8..)?,
            WireType::ThirtyTwoBit => bytes = bytes.get(4..)?,
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (part, rest) = bytes.split_at_checked(length)?;
                *left -= 1;
                if depth > 0 {
                    // A text looks like a message now and then, which makes it count for more than it is.
                    let _ = walk(part, depth - 1, left);
                }
                bytes = rest;
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_small_in_bytes_and_parts_is_read() {
        assert!(check(b"").is_ok());
        assert!(check(&[0x0a, 0x02, 0x0a, 0x00].repeat(1000)).is_ok());
        assert!(check(&vec![0x0a; MAX_BYTES + 1]).is_err_and(|problem| problem.contains("bytes long")));
        // Two bytes each: field 2, empty.
        let many = [0x12, 0x00].repeat(MAX_PARTS);
        assert!(check(&many).is_err_and(|problem| problem.contains("parts")));
    }

    #[test]
    fn parts_are_counted_however_deep_they_are() {
        let mut message = [0x12, 0x00].repeat(MAX_PARTS - 100);
        for _ in 0..99 {
            let mut outer = vec![0x12];
            prost::encoding::encode_varint(message.len() as u64, &mut outer);
            outer.append(&mut message);
            message = outer;
        }
        assert!(check(&message).is_ok());
        assert!(check(&[message.clone(), message].concat()).is_err());
    }

    #[test]
    fn a_walk_ends_whatever_it_meets() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            let bytes: Vec<u8> = (0..random.usize(0..60)).map(|_| random.u8(..)).collect();
            assert!(check(&bytes).is_ok());
        }
    }
}
