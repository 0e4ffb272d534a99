//! Which route a request takes, and what the route makes of it.

use tulle_tests::oracle::Oracle;

use crate::compare::Tally;
use crate::generate::{self, Generator};

#[tokio::test]
async fn generated_routes_treat_generated_requests_alike() {
    let (seed, hosts) = generate::seed(80);
    let mut generator = Generator::new(seed);
    let mut oracle = Oracle::start().await;
    let domains: Vec<_> = (0..hosts).map(|host| format!("h{host}.test")).collect();
    let hosts: Vec<_> = domains.iter().map(|domain| generator.host(domain)).collect();
    oracle.routes(&hosts).await;
    let mut tally = Tally::default();
    for (domain, host) in domains.iter().zip(&hosts) {
        for _ in 0..8 {
            let request = generator.request(domain);
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            tally.compare(&format!("seed {seed}: {host}\n{request:?}"), outcomes);
        }
    }
    tally.end(&[]);
}
