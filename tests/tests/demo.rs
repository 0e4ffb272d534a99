//! `tulle demo`, as its users see it.

use std::path::{Path, PathBuf};

use tokio::io::{BufReader, Lines};
use tokio::process::{ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tulle_tests::{Demo, LIMIT, binary, output_of, wait_for};

/// One bookshop at a time: what it promises is about a machine that has time for it.
static SHOP: Mutex<()> = Mutex::const_new(());

fn demo(args: &[&str]) -> Command {
    let mut command = Command::new(binary("tulle"));
    command.arg("demo").args(args);
    command
}

#[tokio::test]
async fn the_demo_keeps_its_promises() {
    let _alone = SHOP.lock().await;
    let output = output_of(demo(&["--seconds", "10", "--rate", "200"])).await;
    let out = String::from_utf8(output.stdout).expect("UTF-8");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{out}\n{err}");
    assert_eq!(out.lines().filter(|line| line.starts_with("ok ")).count(), 5, "{out}");
    for part in
        ["customers → web ", "cart → stock-v2 ", "spiffe://bookshop.example/ns/shop/sa/stock", " server "]
    {
        assert!(out.contains(part), "{part:?} is missing:\n{out}");
    }
}

#[tokio::test]
async fn an_edit_moves_the_traffic_and_an_interrupt_ends_every_process() {
    let _alone = SHOP.lock().await;
    let mut demo = Demo::start(demo(&[]));
    let lines = &mut demo.lines;
    let line = next_line(lines, "Open. ").await;
    let manifests = PathBuf::from(line.rsplit_once(": ").expect("it names the folder").1);
    let folder = manifests.parent().expect("the manifests are in the demo's folder").to_owned();
    assert_eq!(processes(&folder).len(), 7, "a control plane and six sidecars");

    // Both versions get requests, then only the second.
    assert_ne!(rate(&next_line(lines, "cart → stock-v1").await), 0);
    let routes = manifests.join("10-routes.yaml");
    let text = std::fs::read_to_string(&routes).expect("it is there");
    assert!(text.contains("weight: 90") && text.contains("weight: 10"), "{text}");
    let text = text.replace("weight: 10", "weight: 100").replace("weight: 90", "weight: 0");
    std::fs::write(&routes, text).expect("it can be written");
    // The first table after the edit still counts what went before.
    let _before = next_line(lines, "cart → stock-v1").await;
    assert_eq!(rate(&next_line(lines, "cart → stock-v1").await), 0);
    assert!(rate(&next_line(lines, "cart → stock-v2").await) >= 50);

    let status = demo.interrupt().await;
    assert!(status.success(), "{status}");
    let gone = || async {
        let left = processes(&folder);
        if left.is_empty() { Ok(()) } else { Err(format!("still there: {left:?}")) }
    };
    wait_for(LIMIT, gone).await.expect("no process is left");
    assert!(!folder.exists(), "nor the folder");
}

/// The next line that starts with a text.
async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>, start: &str) -> String {
    let find = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with(start) {
                return line;
            }
        }
        panic!("the demo ended before it said {start:?}");
    };
    timeout(LIMIT * 2, find).await.unwrap_or_else(|_| panic!("no line starts with {start:?}"))
}

/// The requests per second in a line of the table.
fn rate(line: &str) -> u64 {
    let mut words = line.split_whitespace().skip(3);
    words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no rate in {line:?}"))
}

/// The command lines of all processes that name a folder.
fn processes(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("UTF-8");
    let entries = std::fs::read_dir("/proc").expect("Linux").flatten();
    let commands = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    commands
        .map(|command| String::from_utf8_lossy(&command).replace('\0', " "))
        .filter(|command| command.contains(folder))
        .collect()
}
