use std::collections::HashSet;

use futures_util::future::join_all;

use super::testing::worker;
use super::*;

#[tokio::test]
async fn many_who_want_the_same_ask_once_and_all_get_the_answer() {
    let (worker, mut demands) = worker(Snapshot::default());
    let answer = async {
        let demand = demands.recv().await.expect("the worker lives");
        assert_eq!(&*demand.name, "cart.shop:80");
        worker.install(Arc::new(absent(&["other.shop:80"])));
        worker.install(Arc::new(absent(&["cart.shop:80"])));
    };
    let wants = join_all((0..10).map(|_| worker.outbound("cart.shop:80")));
    let (results, ()) = tokio::join!(wants, answer);
    assert!(results.iter().all(|result| matches!(result, Err(NoListener::Unknown))));
    assert!(demands.try_recv().is_err(), "one question");
    // From now on the answer is known.
    assert!(matches!(worker.outbound("cart.shop:80").await, Err(NoListener::Unknown)));
    assert!(demands.try_recv().is_err());
}

#[tokio::test]
async fn without_an_answer_the_wait_ends_and_the_next_one_asks_again() {
    let (worker, mut demands) = worker(Snapshot::default());
    for _ in 0..2 {
        assert!(matches!(worker.outbound("cart.shop:80").await, Err(NoListener::Unavailable)));
        assert_eq!(&*demands.try_recv().expect("a question").name, "cart.shop:80");
    }
}

#[tokio::test]
async fn only_so_many_wait() {
    let (worker, mut demands) = worker(Snapshot::default());
    let names: Vec<String> = (0..2000).map(|n| format!("made-up-{n}:80")).collect();
    let results = join_all(names.iter().map(|name| worker.outbound(name))).await;
    assert!(results.iter().all(|result| matches!(result, Err(NoListener::Unavailable))));
    let mut asked = 0;
    while demands.try_recv().is_ok() {
        asked += 1;
    }
    assert_eq!(asked, 1024);
    // Nobody is left in the way of the next one.
    assert!(worker.outbound("cart.shop:80").await.is_err());
    assert!(demands.try_recv().is_ok());
}

#[tokio::test]
async fn only_so_many_ports_of_one_host_are_asked_for_at_once() {
    let (worker, mut demands) = worker(Snapshot::default());
    let names: Vec<String> = (1..=500).map(|port| format!("10.0.0.1:{port}")).collect();
    let scan = join_all(names.iter().map(|name| worker.outbound(name)));
    // Another host has nothing to do with it, and who wants what is asked for already waits with the others.
    let others = join_all(["10.0.0.2:80", "10.0.0.1:1"].map(|name| worker.outbound(name)));
    let answers = async {
        let asked: Vec<_> = (0..129).map(|_| demands.try_recv().expect("a question").name).collect();
        assert!(asked.iter().any(|name| **name == *"10.0.0.2:80"));
        assert!(demands.try_recv().is_err(), "no more questions");
        worker.install(Arc::new(absent(&asked.iter().map(|name| &**name).collect::<Vec<_>>())));
    };
    let (results, others, ()) = tokio::join!(scan, others, answers);
    let answered = |result: &&Result<_, _>| matches!(result, Err(NoListener::Unknown));
    assert_eq!(results.iter().filter(answered).count(), 128);
    assert_eq!(others.iter().filter(answered).count(), 2);
    assert!(results.iter().all(Result::is_err));
}

fn absent(names: &[&str]) -> Snapshot {
    let absent: HashSet<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
    Snapshot { absent, ..Snapshot::default() }
}
