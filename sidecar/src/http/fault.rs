//! Injected faults: which of them a request gets.

use std::time::Duration;

use tulle_mesh::model::{Fault, FaultAbort};
use tulle_mesh::route::RequestView;

use crate::error::RequestError;

/// What is injected into one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injected<'a> {
    /// A pause before it goes on.
    pub(crate) delay: Option<Duration>,
    /// An answer instead of the service's.
    pub(crate) abort: Option<&'a FaultAbort>,
}

/// Whether `fault` is for this request at all.
pub(crate) fn concerns(fault: &Fault, request: &RequestView<'_>) -> bool {
    fault.applies_to.iter().all(|condition| condition.matches(request.values(&condition.name)))
}

/// Throws the dice of `fault`: one for the delay and one for the answer. Each draw is uniform over `u32`.
pub(crate) fn draw(fault: &Fault, mut draw: impl FnMut() -> u32) -> Injected<'_> {
    let delay = fault.delay.as_ref().filter(|delay| delay.fraction.hit(draw()));
    let abort = fault.abort.as_ref().filter(|abort| abort.fraction.hit(draw()));
    Injected { delay: delay.map(|delay| delay.duration), abort }
}

impl From<&FaultAbort> for RequestError {
    fn from(abort: &FaultAbort) -> Self {
        Self::Fault(abort.status, abort.grpc_status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use tulle_mesh::model::{FaultDelay, PerMillion};

    #[test]
    fn delay_and_answer_have_their_own_dice() {
        let abort = FaultAbort {
            status: StatusCode::SERVICE_UNAVAILABLE,
            grpc_status: Some(14),
            fraction: PerMillion::percent(50),
        };
        let delay = FaultDelay { duration: Duration::from_secs(1), fraction: PerMillion::percent(50) };
        let fault = Fault { delay: Some(delay), abort: Some(abort), ..Fault::default() };
        let injected = |first, second| {
            let mut dice = [first, second].into_iter();
            let injected = draw(&fault, || dice.next().expect("two dice"));
            (injected.delay.is_some(), injected.abort.is_some())
        };
        assert_eq!(injected(0, u32::MAX), (true, false));
        assert_eq!(injected(u32::MAX, 0), (false, true));
        assert_eq!(injected(0, 0), (true, true));
        assert_eq!(draw(&Fault::default(), || 0), Injected { delay: None, abort: None });
    }
}
