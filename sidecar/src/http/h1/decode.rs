//! Bodies, from bytes to frames.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::framing::Framing;
use super::head::{HeadEnd, take_trailers};

/// The longest line with a chunk's size, its extensions included. Signed uploads have extensions of 85 bytes.
const MAX_CHUNK_LINE: usize = 256;
/// The most bytes of a trailer section.
const MAX_TRAILERS: usize = 16 * 1024;
/// The most fields of a trailer section.
const MAX_TRAILER_FIELDS: usize = 64;

/// How far a body has been read.
#[derive(Debug)]
pub(crate) enum Decoder {
    /// To its end.
    Done,
    /// This many bytes are missing.
    Length(u64),
    /// Somewhere in chunks.
    Chunked(Chunk),
    /// It ends with the connection.
    UntilClose,
}

/// Where in the chunks.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// Before a line with a size.
    Size,
    /// This many bytes of a chunk are missing.
    Data(u64),
    /// Before the CRLF after a chunk.
    DataEnd,
    /// In the trailers.
    Trailers(HeadEnd),
}

/// What the bytes at hand amount to.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// Not enough of them.
    More,
    /// A piece of the body; never empty.
    Data(Bytes),
    /// The trailers; the body has ended.
    Trailers(HeaderMap),
    /// The body has ended.
    End,
}

impl Decoder {
    /// At the start of a body.
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunk::Size),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body was read to its end.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// How many bytes are missing, where that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(length) => Some(*length),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Takes what belongs to the body off the front of `bytes`.
    ///
    /// # Errors
    /// When the chunks are malformed.
    pub(crate) fn decode(&mut self, bytes: &mut BytesMut) -> Result<Decoded, &'static str> {
        match self {
            Self::Done => Ok(Decoded::End),
            Self::UntilClose if bytes.is_empty() => Ok(Decoded::More),
            Self::UntilClose => Ok(Decoded::Data(bytes.split().freeze())),
            Self::Length(length) => {
                if bytes.is_empty() {
                    return Ok(Decoded::More);
                }
                let data = take_up_to(bytes, length);
                if *length == 0 {
                    *self = Self::Done;
                }
                Ok(Decoded::Data(data))
            }
            Self::Chunked(chunk) => {
                let decoded = chunk.decode(bytes)?;
                if matches!(decoded, Decoded::Trailers(_) | Decoded::End) {
                    *self = Self::Done;
                }
                Ok(decoded)
            }
        }
    }
}

impl Chunk {
    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Decoded, &'static str> {
        loop {
            match self {
                Self::Size => match take_chunk_size(bytes)? {
                    None => return Ok(Decoded::More),
                    Some(0) => *self = Self::Trailers(HeadEnd::default()),
                    Some(size) => *self = Self::Data(size),
                },
                Self::Data(size) => {
                    if bytes.is_empty() {
                        return Ok(Decoded::More);
                    }
                    let data = take_up_to(bytes, size);
                    if *size == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Decoded::Data(data));
                }
                Self::DataEnd => match bytes.as_ref() {
                    [b'\r', b'\n', ..] => {
                        let _ = bytes.split_to(2);
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => return Ok(Decoded::More),
                    _ => return Err("a chunk that is longer than its size"),
                },
                Self::Trailers(end) => {
                    return Ok(match take_trailers(bytes, end, MAX_TRAILERS, MAX_TRAILER_FIELDS)? {
                        None => Decoded::More,
                        Some(trailers) if trailers.is_empty() => Decoded::End,
                        Some(trailers) => Decoded::Trailers(trailers),
                    });
                }
            }
        }
    }
}

/// Takes a chunk's first line: `None` when more has to come.
fn take_chunk_size(bytes: &mut BytesMut) -> Result<Option<u64>, &'static str> {
    let window = &bytes[..bytes.len().min(MAX_CHUNK_LINE)];
    let Some(end) = window.iter().position(|&b| b == b'\n') else {
        return if window.len() == MAX_CHUNK_LINE {
            Err("a chunk size line that is too long")
        } else {
            Ok(None)
        };
    };
    let Some((b'\r', line)) = window[..end].split_last() else {
        return Err("a chunk size line that ends without CR");
    };
    let digits = line.iter().position(|&b| b == b';').unwrap_or(line.len());
    let (digits, extensions) = line.split_at(digits);
    if digits.is_empty() || digits.len() > 16 {
        return Err("an invalid chunk size");
    }
    let size = digits.iter().try_fold(0_u64, |size, &digit| {
        let digit = char::from(digit).to_digit(16).ok_or("an invalid chunk size")?;
        Ok::<_, &'static str>(size << 4 | u64::from(digit))
    })?;
    if extensions.iter().any(|&b| b.is_ascii_control() && b != b'\t') {
        return Err("an invalid chunk extension");
    }
    let _ = bytes.split_to(end + 1);
    Ok(Some(size))
}

/// Takes at most `limit` bytes, and takes them off the limit.
fn take_up_to(bytes: &mut BytesMut, limit: &mut u64) -> Bytes {
    let len = usize::try_from(*limit).unwrap_or(usize::MAX).min(bytes.len());
    *limit -= len as u64;
    bytes.split_to(len).freeze()
}
