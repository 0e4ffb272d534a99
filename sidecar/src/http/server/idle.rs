//! How long nothing may move between a client and the sidecar while a request is served.

use std::time::Duration;

/// The time of one request: its listener's, unless its route says another.
#[derive(Clone, Copy)]
pub(super) struct Idle {
    limit: Option<Duration>,
    by_route: bool,
    answered: bool,
}

impl Idle {
    /// As the listener has it; `None`: however long.
    pub(super) fn of_listener(limit: Option<Duration>) -> Self {
        Self { limit, by_route: false, answered: false }
    }

    /// As the route has it.
    pub(super) fn of_route(self, limit: Option<Duration>) -> Self {
        Self { limit, by_route: true, ..self }
    }

    /// From now on the answer is on its way.
    pub(super) fn answered(self) -> Self {
        Self { answered: true, ..self }
    }

    /// How long a client may take to send more. What a route says is timed with the answer once there is one, in both directions
    /// at once: two timers of one length would race for what is recorded.
    pub(super) fn reading(self) -> Option<Duration> {
        self.limit.filter(|_| !(self.by_route && self.answered))
    }

    /// How long it may take to accept what it is sent.
    pub(super) fn writing(self) -> Option<Duration> {
        self.limit
    }
}
