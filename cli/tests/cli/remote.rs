//! `tulle status` and `tulle config` against answers that a real control plane or sidecar gives, and none.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use serde_json::json;

use crate::tulle::{folder, tulle};

/// Answers one request with a page for each of `pages`, by path, then ends.
fn serve(pages: Vec<(&'static str, u16, String)>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let served = std::thread::spawn(move || {
        for (path, status, body) in pages {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a whole head");
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).expect("ASCII");
            assert!(head.starts_with(&format!("GET {path} ")), "{head}");
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).expect("the client listens");
        }
    });
    (address, served)
}

#[test]
fn status_reads_what_the_control_plane_says() {
    let proxies = json!({ "proxies": [{
        "node": "cart-1", "identity": "spiffe://td/ns/shop/sa/cart", "address": null,
        "userAgent": "tulle", "version": "0.1.0", "certificateSince": null, "protocol": "delta", "connectedSince": "2026-11-22T17:00:00Z",
        "certificateExpires": null, "root": null, "tokenExpires": null, "synced": true,
        "types": { "LDS": { "subscribed": 2, "wildcard": false, "synced": true, "sent": null, "sentAt": null,
            "nonce": null, "acked": null, "nacked": [] } },
    }] });
    let folder = folder(&[]);
    let (address, served) = serve(vec![("/api/v1/proxies", 200, proxies.to_string())]);
    let run = tulle(folder.path(), &["status", "--control-plane", &format!("http://{address}/")]);
    served.join().expect("it was asked");
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.starts_with("PROXY    IDENTITY"), "{}", run.out);
    assert!(run.out.contains("cart-1") && run.out.contains("synced 2"), "{}", run.out);

    let (address, served) = serve(vec![("/api/v1/proxies", 200, proxies.to_string())]);
    let run = tulle(folder.path(), &["status", "--control-plane", &address.to_string(), "-o", "json"]);
    served.join().expect("it was asked");
    assert_eq!(run.json()["proxies"][0]["node"], "cart-1");
}

#[test]
fn config_shows_one_part_or_all() {
    let folder = folder(&[]);
    let dump = json!({ "generation": 3, "sync": {}, "outbound": [], "inbound": [], "absent": ["gone.shop:80"],
        "clusters": [{ "name": "c", "cluster": {}, "endpoints": [] }] });
    let certs = json!({ "leaf": null, "roots": [{ "subject": "CN=root", "uris": [], "expiresIn": 60 }] });
    let (address, served) =
        serve(vec![("/config", 200, dump.to_string()), ("/certs", 200, certs.to_string())]);
    let run = tulle(folder.path(), &["config", "--sidecar", &address.to_string()]);
    served.join().expect("it was asked");
    assert_eq!(run.code, 0, "{}", run.err);
    for part in ["Snapshot 3", "gone.shop:80", "CLUSTER", "CN=root"] {
        assert!(run.out.contains(part), "{part}: {}", run.out);
    }
    let (address, served) = serve(vec![("/config", 200, dump.to_string())]);
    let run = tulle(folder.path(), &["config", "clusters", "--sidecar", &address.to_string(), "-o", "json"]);
    served.join().expect("it was asked");
    assert_eq!(run.json(), json!({ "clusters": dump["clusters"] }));
}

#[test]
fn who_does_not_answer_is_named() {
    let folder = folder(&[]);
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("it is bound").to_string()
    };
    let run = tulle(folder.path(), &["status", "--control-plane", &address]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains(&format!("http://{address} does not answer: ")), "{}", run.err);
    let (address, served) = serve(vec![("/config", 503, "not now".into())]);
    let run = tulle(folder.path(), &["config", "--sidecar", &address.to_string()]);
    served.join().expect("it was asked");
    assert_eq!(run.code, 1);
    assert!(run.err.contains("/config says 503: not now"), "{}", run.err);
    let run = tulle(folder.path(), &["status", "--control-plane", "http://a b"]);
    assert_eq!(run.code, 2, "{}", run.err);
}
