//! What the tests' hosts themselves promise: without it the other tests here would prove nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use tulle_tests::hosts::{APP_UID, Host, Network, Server};
use tulle_tests::{LIMIT, output_of, wait_for};

/// A host that serves one page on port 80, for both families, without being root.
async fn site(host: &Host, page: &str) -> (Server, TempDir) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("page"), page).expect("it can be written");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("it is ours");
    let mut command = host.command(APP_UID, "/usr/bin/python3");
    command.args(["-m", "http.server", "80", "--bind", "::", "--directory"]).arg(folder.path());
    command.stderr(Stdio::null());
    (host.serve(command, 80).await, folder)
}

async fn get(host: &Host, url: &str) -> String {
    let mut command = host.curl();
    command.args(["--fail", url]);
    let output = output_of(command).await;
    String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr })
        .into_owned()
}

#[tokio::test]
async fn hosts_reach_each_other_and_nothing_else() {
    let network = Network::new();
    let (one, two) = (network.host("one"), network.host("two"));
    let _site = site(&two, "two's page").await;
    assert_eq!(get(&one, &format!("http://{}/page", two.v4)).await, "two's page");
    assert_eq!(get(&one, &format!("http://[{}]/page", two.v6)).await, "two's page");
    assert_eq!(get(&two, "http://127.0.0.1/page").await, "two's page");
    assert_eq!(get(&two, "http://[::1]/page").await, "two's page");
    // Each has a loopback of its own, and the machine's own network is not there.
    assert!(one.connect((Ipv4Addr::LOCALHOST, 80)).await.is_err());
    let outside = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let outside = outside.local_addr().expect("it is bound");
    assert!(one.connect(outside).await.is_err());
    let uid = one.run("id", &["-u"]).await;
    assert_eq!(String::from_utf8_lossy(&uid.stdout).trim(), APP_UID.to_string());
}

#[tokio::test]
async fn networks_do_not_meet() {
    let (here, there) = (Network::new(), Network::new());
    let (one, two) = (here.host("one"), there.host("two"));
    assert_eq!(one.v4, two.v4, "each network counts for itself");
    let _site = site(&two, "there").await;
    assert!(one.connect((one.v4, 80)).await.is_err());
}

#[tokio::test]
async fn a_host_may_lack_ipv6() {
    let network = Network::new();
    let (old, new) = (network.host_without_ipv6("old"), network.host("new"));
    assert!(old.listen((Ipv6Addr::LOCALHOST, 0)).is_err(), "not even on its loopback");
    assert!(old.listen((IpAddr::from(old.v4), 0)).is_ok());
    let listener = new.listen((Ipv6Addr::UNSPECIFIED, 80)).expect("a port");
    assert!(old.connect((new.v6, 80)).await.is_err());
    let (connected, accepted) = tokio::join!(old.connect((new.v4, 80)), listener.accept());
    assert_eq!(accepted.expect("it came").1.ip().to_canonical(), old.v4);
    connected.expect("IPv4 works");
}

#[tokio::test]
async fn a_link_is_cut_and_mended() {
    let network = Network::new();
    let (one, two) = (network.host("one"), network.host("two"));
    let _site = site(&two, "still here").await;
    let url = format!("http://{}/page", two.v4);
    assert_eq!(get(&one, &url).await, "still here");
    two.cut();
    let mut command = one.curl();
    command.args(["--connect-timeout", "1", &url]);
    assert!(!output_of(command).await.status.success());
    two.mend();
    assert_eq!(get(&one, &url).await, "still here");
}

#[tokio::test]
async fn a_link_loses_what_it_is_told_to_lose() {
    let network = Network::new();
    let (one, two) = (network.host("one"), network.host("two"));
    let target = two.udp((two.v4, 9000)).expect("a port");
    let socket = one.udp((one.v4, 0)).expect("a port");
    // No more than a socket's buffer holds. Six standard deviations of a binomial around 140.
    for (percent, expected) in [(0, 200..=200), (30, 101..=179), (0, 200..=200)] {
        two.lose(percent).await;
        for _ in 0..200 {
            socket.send_to(b"x", (two.v4, 9000)).await.expect("it is sent");
        }
        let mut arrived = 0;
        while timeout(Duration::from_millis(100), target.recv(&mut [0; 8])).await.is_ok() {
            arrived += 1;
        }
        assert!(expected.contains(&arrived), "{arrived} of 200 arrived at {percent} % loss");
    }
}

#[tokio::test]
async fn a_link_is_slow_or_says_that_this_kernel_has_no_slow_ones() {
    let network = Network::new();
    let (one, two) = (network.host("one"), network.host("two"));
    let _listener = two.listen((two.v4, 80)).expect("a port");
    let delay = Duration::from_millis(100);
    if let Err(reason) = one.delay(delay).await {
        assert!(reason.contains("netem") && !reason.ends_with(": "), "{reason}");
        return;
    }
    let started = Instant::now();
    one.connect((two.v4, 80)).await.expect("it listens");
    assert!(started.elapsed() >= delay);
}

#[tokio::test]
async fn a_capture_shows_what_passes_in_the_clear() {
    let network = Network::new();
    let (one, two) = (network.host("one"), network.host("two"));
    let _site = site(&two, "a page that everyone may read").await;
    let link = one.capture("eth0").await;
    let loopback = two.capture("lo").await;
    get(&one, &format!("http://{}/page", two.v4)).await;
    let (link, loopback) = (link.end().await, loopback.end().await);
    assert!(link.contain("a page that everyone may read"));
    assert!(!loopback.contain("a page that everyone may read"));
}

#[tokio::test]
async fn programs_see_the_resolver_that_a_host_has() {
    let network = Network::new();
    let host = network.host("one");
    host.resolver("nameserver 10.77.0.53\nsearch shop.svc.cluster.local\n");
    let output = host.run("cat", &["/etc/resolv.conf"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().next(), Some("nameserver 10.77.0.53"));
}

/// What `tulle_tests` keeps of a network, seen from outside.
fn left(process: u32) -> Vec<String> {
    let names = ["/run/netns", "/etc/netns"].map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    let names =
        names.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("tulle-{process}-"))).collect()
}

#[tokio::test]
async fn nothing_is_left_of_a_network() {
    let network = Network::new();
    let host = network.host("one");
    host.resolver("nameserver 10.77.0.53\n");
    let mine = |name: &String| name.contains(&network_of(&host));
    let (server, _folder) = site(&host, "").await;
    assert!(left(std::process::id()).iter().any(mine));
    let id = server.id().expect("it runs");
    let network_name = network_of(&host);
    drop((host, network));
    assert!(!left(std::process::id()).iter().any(|name| name.contains(&network_name)));
    until_ended(id).await;
}

/// Waits until a process has ended; whoever started it may still have to hear of it.
async fn until_ended(process: u32) {
    let ended =
        || async { if runs(process) { Err(format!("process {process} still runs")) } else { Ok(()) } };
    wait_for(LIMIT, ended).await.unwrap_or_else(|error| panic!("{error}"));
}

fn runs(process: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

/// The part of a host's namespace's name that stands for its network.
fn network_of(host: &Host) -> String {
    host.namespace().rsplit_once('-').expect("the host's name is the last part").0.to_owned()
}

#[tokio::test]
async fn what_a_killed_run_left_is_removed_by_the_next() {
    if std::env::var_os(VICTIM).is_some() {
        return victim().await;
    }
    let this = std::env::current_exe().expect("this program has a path");
    let again = |victim: bool| {
        let mut command = Command::new(&this);
        command.args(["--exact", "--nocapture", "--test-threads=1"]);
        if victim {
            command.arg("network::what_a_killed_run_left_is_removed_by_the_next").env(VICTIM, "1");
        } else {
            command.arg("network::networks_do_not_meet");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command
    };
    let mut child = again(true).spawn().expect("it starts");
    let id = child.id().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let ready = async {
        loop {
            let line = lines.next_line().await.expect("it can be read").expect("it says so before it ends");
            if let Some((_, processes)) = line.split_once("READY ") {
                let (server, other) = processes.split_once(' ').expect("two of them");
                return [server, other].map(|id| id.parse::<u32>().expect("a process"));
            }
        }
    };
    let [server, other] = timeout(LIMIT, ready).await.expect("in time");
    child.kill().await.expect("it runs");
    // What was started as on a host ends with it, even then.
    until_ended(server).await;
    assert_eq!(left(id).len(), 3, "a bridge, a host and its files in /etc: {:?}", left(id));
    assert!(runs(other), "and a process that somebody else started there");

    let output = output_of(again(false)).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(left(id), Vec::<String>::new());
    until_ended(other).await;
}

const VICTIM: &str = "TULLE_TEST_VICTIM";

/// Makes a network with a server on it and another process, says so, and waits to be killed.
async fn victim() {
    let network = Network::new();
    let host = network.host("one");
    host.resolver("nameserver 10.77.0.53\n");
    let (server, _folder) = site(&host, "").await;
    let mut other = Command::new("ip");
    other.args(["netns", "exec", host.namespace(), "sleep", "600"]);
    let other = other.spawn().expect("ip is there");
    println!("READY {} {}", server.id().expect("it runs"), other.id().expect("it runs"));
    std::future::pending::<()>().await;
}
