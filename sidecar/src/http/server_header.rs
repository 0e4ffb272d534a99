//! `server`: who says that it answers.

use http::HeaderMap;
use http::header::SERVER;
use tulle_mesh::model::ServerHeader;

/// Does with the header of an answer, whoever made it, as its listener wants.
pub(super) fn apply(headers: &mut HeaderMap, how: &ServerHeader) {
    match how {
        ServerHeader::PassThrough => {}
        ServerHeader::Overwrite(name) => {
            headers.insert(SERVER, name.clone());
        }
        ServerHeader::AddIfAbsent(name) => {
            headers.entry(SERVER).or_insert_with(|| name.clone());
        }
    }
}
