//! Which version of HTTP an endpoint turned out to speak.
//!
//! In: how connections to it have begun. Out: the version for a request where the wanted one is of no use. What is not
//! known costs nothing: a connection is begun in the wanted version, and only one that can't be goes over to the other.
//! Nothing is concluded from silence, and nothing of a request was processed where a conclusion is drawn.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;
use tulle_mesh::model::UpstreamProtocol;

use super::{ConnectError, HttpVersion, SendError};

/// How long an endpoint is taken not to speak a version. Another application may come to listen at the same address.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// For how long after a connection in a version was begun a close is taken for a restart, not for the want of that
/// version.
const SPOKEN_FOR: Duration = Duration::from_secs(600);

/// What is known of an endpoint and one version.
#[derive(Default)]
pub(super) struct Ability(Cell<Seen>);

#[derive(Clone, Copy, Default)]
enum Seen {
    #[default]
    Nothing,
    /// It spoke the version at this time.
    Spoken(Instant),
    /// It did not speak the version at this time.
    Refused(Instant),
}

impl Ability {
    /// The endpoint speaks the version.
    pub(super) fn spoken(&self) {
        self.0.set(Seen::Spoken(Instant::now()));
    }

    /// The endpoint does not speak the version.
    pub(super) fn refused(&self) {
        self.0.set(Seen::Refused(Instant::now()));
    }

    /// What was seen says nothing any more.
    pub(super) fn forget(&self) {
        self.0.set(Seen::Nothing);
    }

    /// Whether the endpoint does not speak the version.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.0.get(), Seen::Refused(at) if at.elapsed() < REFUSED_FOR)
    }

    /// Whether `error`, of a connection that should have been HTTP/2, means that HTTP/1.1 is to be spoken. Notes it then.
    ///
    /// An answer in anything else is a proof. A close is one only where nothing speaks for HTTP/2: no configuration, no
    /// earlier connection, no request that needs it.
    pub(super) fn gives_way(&self, error: &SendError, told: UpstreamProtocol, is_grpc: bool) -> bool {
        let SendError::Connect(ConnectError::NotHttp2 { answered }) = error else { return false };
        let spoken = matches!(self.0.get(), Seen::Spoken(at) if at.elapsed() < SPOKEN_FOR);
        let gives_way = *answered || (told == UpstreamProtocol::Downstream && !spoken && !is_grpc);
        if gives_way {
            self.refused();
        }
        gives_way
    }
}

impl HttpVersion {
    /// The other one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Http1 => Self::Http2,
            Self::Http2 => Self::Http1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: SendError = SendError::Connect(ConnectError::NotHttp2 { answered: false });
    const ANSWERED: SendError = SendError::Connect(ConnectError::NotHttp2 { answered: true });

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_another_version_is_a_proof_for_a_while() {
        for told in [UpstreamProtocol::Downstream, UpstreamProtocol::Http2] {
            let ability = Ability::default();
            ability.spoken();
            assert!(ability.gives_way(&ANSWERED, told, true));
            assert!(ability.is_refused());
            tokio::time::advance(REFUSED_FOR).await;
            assert!(!ability.is_refused());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_is_one_only_where_nothing_speaks_for_http_2() {
        let ability = Ability::default();
        assert!(!ability.gives_way(&CLOSED, UpstreamProtocol::Http2, false));
        assert!(!ability.gives_way(&CLOSED, UpstreamProtocol::Downstream, true));
        ability.spoken();
        assert!(!ability.gives_way(&CLOSED, UpstreamProtocol::Downstream, false));
        assert!(!ability.is_refused());
        tokio::time::advance(SPOKEN_FOR).await;
        assert!(ability.gives_way(&CLOSED, UpstreamProtocol::Downstream, false));
        assert!(ability.is_refused());
        ability.forget();
        assert!(!ability.is_refused());
    }

    #[tokio::test]
    async fn no_other_failure_says_anything() {
        let ability = Ability::default();
        let timeout = SendError::Connect(ConnectError::Timeout(Duration::ZERO));
        for error in [timeout, SendError::Reset("x"), SendError::NotProcessed("x")] {
            assert!(!ability.gives_way(&error, UpstreamProtocol::Downstream, false));
        }
        assert!(!ability.is_refused());
    }
}
