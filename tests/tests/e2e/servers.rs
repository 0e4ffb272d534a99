//! Protocols of others on ports of which nothing is told: their own clients, through the pair of sidecars, over mTLS.
//! The number of the service's port (80) is not one that is known for any of them.

use std::net::SocketAddr;

use tulle_cli::local::Sidecar;
use tulle_tests::{Ground, LIMIT, Server, identity, output_of, wait_for};

use crate::Pair;

/// A pair of sidecars before a server of which only the address is told.
struct Behind {
    pair: Pair,
    ground: Ground,
    server: Server,
}

impl Behind {
    async fn start(server: impl AsyncFnOnce(&Ground) -> Server) -> Self {
        let ground = Ground::default();
        let server = server(&ground).await;
        let pair = Pair::start_untold(server.address).await;
        Self { pair, ground, server }
    }

    fn port(&self) -> SocketAddr {
        self.pair.port()
    }

    /// Each connection went over mTLS, and none was refused.
    async fn was_mutual_tls(&self) {
        // They are counted when both ends have closed them.
        let counted = || async {
            let peer = ("source_principal", identity("client"));
            let (own, all) = connections(&self.pair.server, ("direction", "inbound"), &peer).await;
            let peer = ("destination_principal", identity("echo"));
            let (to, _) = connections(&self.pair.client, ("direction", "outbound"), &peer).await;
            let all_counted = own > 0.0 && own == all && own == to;
            all_counted
                .then_some(())
                .ok_or_else(|| format!("{own} of {all} came from the client, which made {to}"))
        };
        wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
        for sidecar in [&self.pair.client, &self.pair.server] {
            let metrics = sidecar.metrics().await.expect("it answers");
            assert_eq!(metrics.sum("tulle_connections_refused_total", &[]), 0.0, "{metrics:?}");
        }
    }
}

/// How many connections of one direction a sidecar has carried: those with a peer, and all.
async fn connections(
    sidecar: &Sidecar,
    direction: (&str, &str),
    (name, peer): &(&str, String),
) -> (f64, f64) {
    let metrics = sidecar.metrics().await.expect("it answers");
    let series = "tulle_tcp_connection_duration_seconds_count";
    (metrics.sum(series, &[direction, (name, peer)]), metrics.sum(series, &[direction]))
}

async fn text_of(command: tokio::process::Command) -> String {
    let output = output_of(command).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[tokio::test]
async fn postgresql() {
    let behind = Behind::start(Ground::postgres).await;
    let sql = async |statement| text_of(behind.ground.psql(behind.port(), statement)).await;
    sql("create table books (id int, title text)").await;
    sql("insert into books select n, 'book ' || n from generate_series(1, 5000) n").await;
    assert_eq!(sql("select count(*), sum(id) from books").await, "5000|12502500");
    let all = sql("select title from books order by id").await;
    assert_eq!((all.lines().count(), all.lines().last()), (5000, Some("book 5000")));
    behind.was_mutual_tls().await;
}

#[tokio::test]
async fn redis() {
    let behind = Behind::start(Ground::redis).await;
    let redis = async |words: &[&str]| text_of(behind.ground.redis_cli(behind.port(), words)).await;
    assert_eq!(redis(&["SET", "GET", "HTTP/1.1"]).await, "OK");
    assert_eq!(redis(&["GET", "GET"]).await, "\"HTTP/1.1\"");
    assert_eq!(redis(&["INCRBY", "count", "42"]).await, "(integer) 42");
    behind.was_mutual_tls().await;
}

#[tokio::test]
async fn mariadb() {
    let behind = Behind::start(Ground::mariadb).await;
    let sql = async |statement| text_of(behind.ground.mysql(behind.port(), statement)).await;
    sql("create database shop; create table shop.books (id int, title text)").await;
    sql("insert into shop.books select seq, concat('book ', seq) from shop.seq_1_to_5000").await;
    let all = sql("select title from shop.books order by id").await;
    assert_eq!((all.lines().count(), all.lines().last()), (5000, Some("book 5000")));
    assert_eq!(sql("select 6 * 7, 'two words'").await, "42\ttwo words");
    behind.was_mutual_tls().await;
}

#[tokio::test]
async fn smtp() {
    let behind = Behind::start(Ground::smtp).await;
    let mail = behind.server.folder.path().join("a-mail");
    std::fs::write(&mail, "Subject: a book\r\n\r\nIt has arrived.\r\n").expect("the folder can be written");
    let options = ["--mail-from", "shop@example.org", "--mail-rcpt", "you@example.org", "--upload-file"];
    let path = mail.to_str().expect("a UTF-8 path");
    let url = format!("smtp://{}", behind.port());
    text_of(behind.ground.curl(&url, &[&options[..], &[path]].concat())).await;
    let mut boxed = std::fs::read_dir(behind.server.folder.path().join("mail/new")).expect("a mailbox");
    let arrived = boxed.next().expect("a mail").expect("a file").path();
    let arrived = std::fs::read_to_string(arrived).expect("it can be read");
    assert!(arrived.contains("Subject: a book") && arrived.contains("It has arrived."), "{arrived}");
    behind.was_mutual_tls().await;
}

#[tokio::test]
async fn mqtt() {
    let behind = Behind::start(Ground::mosquitto).await;
    let message = "the last one in stock";
    text_of(behind.ground.mosquitto_pub(behind.port(), "shop/books", message)).await;
    // Kept by the broker for whoever comes later.
    assert_eq!(text_of(behind.ground.mosquitto_sub(behind.port(), "shop/books")).await, message);
    behind.was_mutual_tls().await;
}

#[tokio::test]
async fn ftp_control() {
    let behind = Behind::start(Ground::vsftpd).await;
    let file = behind.server.folder.path().join("files/book.txt");
    std::fs::write(&file, vec![b'x'; 1234]).expect("the folder can be written");
    // Size and time are asked for over the control connection.
    let url = format!("ftp://{}/book.txt", behind.port());
    let head = text_of(behind.ground.curl(&url, &["--head"])).await;
    assert!(head.contains("Content-Length: 1234"), "{head}");
    behind.was_mutual_tls().await;
}
