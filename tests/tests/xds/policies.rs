//! Who may ask for what: authorization rules, generated, and paths that could be read in two ways.

use serde_json::{Value, json};
use tulle_tests::oracle::Oracle;

use crate::compare::Tally;
use crate::generate::{self, Generator};

fn host() -> Value {
    json!({ "name": "h", "domains": ["h.test"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }] })
}

#[tokio::test]
async fn generated_rules_let_pass_what_envoys_let_pass() {
    let (seed, sets) = generate::seed(40);
    let mut generator = Generator::new(seed);
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let mut tally = Tally::default();
    let mut denied = 0;
    for _ in 0..sets {
        let settings = generator.authorization();
        oracle.manager(settings.clone()).await;
        for _ in 0..8 {
            let request = generator.plain_request("h.test");
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            denied += usize::from(outcomes[0].received.status == 403);
            tally.compare(&format!("seed {seed}: {settings}\n{request:?}"), outcomes);
        }
    }
    println!("{denied} of them denied");
    tally.end(&["local replies"]);
}
