//! Servers of others on one host and their own clients on another: no setting of either speaks of the mesh, and no
//! manifest tells the protocol. Each does real work, of which nothing can be read on the link.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use tulle_tests::hosts::{Capture, Member, Meshed};
use tulle_tests::{Ground, LIMIT, Server, TestMesh, identity, output_of, wait_for};

/// Stands in everything that is sent, and in nothing else.
const MARKER: &str = "organza-4711";

/// The virtual addresses of the Service, and a port that means no protocol to anybody.
const SERVICE: [&str; 2] = ["10.96.0.20", "fd96::20"];
const PORT: u16 = 4040;

/// As much as is sent at once, each way.
const BLOB: usize = 5_000_000;

/// A server on a host of the mesh, and a client's host.
struct Behind {
    /// The client's host.
    ground: Ground,
    client: Meshed,
    server: Meshed,
    process: Server,
    files: TempDir,
    _mesh: TestMesh,
}

/// What passes while the work is done.
struct Watch<'a> {
    link: Capture<'a>,
    loopback: Capture<'a>,
}

impl Behind {
    /// `ports` are what the Service has beside its first, as steps from the server's own port.
    async fn start(ports: &[u16], server: impl AsyncFnOnce(&Ground) -> Server) -> Self {
        let mesh = TestMesh::on_hosts().await;
        let host = mesh.host("server");
        let process = server(&host.ground()).await;
        let own = process.address.port();
        let names: Vec<String> = ports.iter().map(|step| format!("more-{step}")).collect();
        let more = || names.iter().zip(ports).map(|(name, step)| (name.as_str(), own + step));
        let declared: Vec<_> = [("main", own)].into_iter().chain(more()).collect();
        mesh.workload_on(&host, "server", host.v4, &declared);
        let more = more().map(|(name, port)| (name, port, name));
        let served: Vec<_> = [("main", PORT, "main")].into_iter().chain(more).collect();
        mesh.service("server", &SERVICE.map(|ip| ip.parse().expect("an address")), &served);
        let server = mesh.join_as(&host, Member::of("server")).await;
        let client = mesh.join("client").await;
        mesh.knows("Service", "server").await;
        let files = tempfile::tempdir().expect("a folder");
        Self { ground: client.host.ground(), client, server, process, files, _mesh: mesh }
    }

    /// The Service, by each family.
    fn addresses(&self) -> [SocketAddr; 2] {
        SERVICE.map(|ip| SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), PORT))
    }

    /// The Service.
    fn service(&self) -> SocketAddr {
        self.addresses()[0]
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A file of much text.
    fn blob(&self) -> (PathBuf, Vec<u8>) {
        let mut text = String::with_capacity(BLOB + 128);
        while text.len() < BLOB {
            text.push_str(&format!("{MARKER} {:032x}{:032x}\n", fastrand::u128(..), fastrand::u128(..)));
        }
        let path = self.file("blob");
        std::fs::write(&path, &text).expect("the folder can be written");
        (path, text.into_bytes())
    }

    async fn watch(&self) -> Watch<'_> {
        Watch { link: self.server.host.capture("eth0").await, loopback: self.server.host.capture("lo").await }
    }

    /// All connections went over mTLS between the two, and what `secret` stands for was not to be read on the way.
    async fn kept(&self, watch: Watch<'_>, secret: &str) {
        let (link, loopback) = (watch.link.end().await, watch.loopback.end().await);
        assert!(loopback.contain(secret), "{secret}: the server reads it on its own host");
        assert!(!link.contain(secret), "{secret} can be read between the hosts");
        // They are counted when both ends have closed them. A client that is late with its first word may have got one
        // that was of no use to it, and perhaps has not even reached the server.
        let counted = || async {
            let by = |peer: &'static str, name: &str| (peer, identity(name));
            let [from, of] = connections(&self.server, "inbound", by("source_principal", "client")).await;
            let [to, by] = connections(&self.client, "outbound", by("destination_principal", "server")).await;
            let metrics = self.client.metrics().await;
            let unused = metrics.sum("tulle_detection_races_total", &[("outcome", "unused")]);
            let all = to > 0.0 && to == by && from == of && (by..=by + unused).contains(&from);
            all.then_some(()).ok_or_else(|| {
                format!("{of} at the server, {from} from the client; {by} at the client, {to} to the server; {unused}")
            })
        };
        wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
        for meshed in [&self.client, &self.server] {
            let metrics = meshed.metrics().await;
            assert_eq!(metrics.sum("tulle_connections_refused_total", &[]), 0.0, "{metrics:?}");
            assert_eq!(metrics.sum("tulle_tls_handshake_failures_total", &[]), 0.0, "{metrics:?}");
        }
    }
}

/// How many connections of one direction a sidecar has carried: those with a peer, and all.
async fn connections(meshed: &Meshed, direction: &str, (label, peer): (&str, String)) -> [f64; 2] {
    let metrics = meshed.metrics().await;
    let series = "tulle_tcp_connection_duration_seconds_count";
    let direction = ("direction", direction);
    [metrics.sum(series, &[direction, (label, &peer)]), metrics.sum(series, &[direction])]
}

/// A client that is told one thing after another.
struct Session {
    _child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Session {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; run tests/setup"));
        let (input, output) = (child.stdin.take().expect("it is piped"), child.stdout.take());
        Self { _child: child, input, lines: BufReader::new(output.expect("it is piped")).lines() }
    }

    /// Says a line and hears one.
    async fn ask(&mut self, text: &str) -> String {
        self.input.write_all(format!("{text}\n").as_bytes()).await.expect("it reads");
        self.line().await
    }

    async fn line(&mut self) -> String {
        let line = timeout(LIMIT, self.lines.next_line()).await.expect("it answers in time");
        line.expect("text").expect("it goes on")
    }
}

async fn bytes_of(command: Command) -> Vec<u8> {
    let output = output_of(command).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

async fn text_of(command: Command) -> String {
    String::from_utf8(bytes_of(command).await).expect("text").trim().to_owned()
}

/// Runs a command whose standard input is a file.
async fn fed(mut command: Command, file: &Path) -> String {
    command.stdin(std::fs::File::open(file).expect("it is there")).kill_on_drop(true);
    let output = timeout(LIMIT * 2, command.output()).await.expect("it ends").expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[track_caller]
fn same(got: &[u8], sent: &[u8]) {
    assert!(got == sent, "{} bytes came of {}", got.len(), sent.len());
}

#[tokio::test]
async fn postgresql() {
    let behind = Behind::start(&[], Ground::postgres).await;
    let watch = behind.watch().await;
    let sql = async |statement: &str| text_of(behind.ground.psql(behind.service(), statement)).await;
    sql("create table books (id int, title text)").await;
    // Two sessions at once, one by each family.
    let [mut writer, mut reader] =
        behind.addresses().map(|address| Session::start(behind.ground.psql_session(address)));
    let count = "select count(*) from books;";
    assert_eq!(writer.ask("begin;").await, "BEGIN");
    assert_eq!(writer.ask(&format!("insert into books values (1, '{MARKER}');")).await, "INSERT 0 1");
    assert_eq!([writer.ask(count).await, reader.ask(count).await], ["1", "0"]);
    assert_eq!(writer.ask("commit;").await, "COMMIT");
    assert_eq!(reader.ask("select title from books;").await, MARKER);
    drop((writer, reader));
    let (path, blob) = behind.blob();
    let back = behind.file("back");
    let id = sql(&format!("\\lo_import {}", path.display())).await;
    let id = id.strip_prefix("lo_import ").unwrap_or_else(|| panic!("{id}"));
    sql(&format!("\\lo_export {id} {}", back.display())).await;
    same(&std::fs::read(&back).expect("psql has written it"), &blob);
    behind.kept(watch, MARKER).await;
}

#[tokio::test]
async fn redis() {
    let behind = Behind::start(&[], Ground::redis).await;
    let watch = behind.watch().await;
    let cli = |words: &[&str]| behind.ground.redis_cli(behind.service(), words);
    let [mut first, mut second] =
        behind.addresses().map(|address| Session::start(behind.ground.redis_cli(address, &[])));
    assert_eq!(first.ask("MULTI").await, "OK");
    assert_eq!(first.ask(&format!("SET book {MARKER}")).await, "QUEUED");
    assert_eq!(second.ask("GET book").await, "(nil)");
    assert_eq!(first.ask("EXEC").await, "1) OK");
    assert_eq!(second.ask("GET book").await, format!("\"{MARKER}\""));
    // The server speaks unasked.
    let mut heard = second.ask("SUBSCRIBE news").await;
    while heard != "1) \"subscribe\"" {
        // What redis-cli says of itself.
        heard = second.line().await;
    }
    assert_eq!([second.line().await, second.line().await], ["2) \"news\"", "3) (integer) 1"]);
    assert_eq!(first.ask(&format!("PUBLISH news {MARKER}")).await, "(integer) 1");
    let heard = [second.line().await, second.line().await, second.line().await];
    assert_eq!(heard[2], format!("3) \"{MARKER}\""));
    drop((first, second));
    let (path, blob) = behind.blob();
    assert_eq!(fed(cli(&["-x", "SET", "blob"]), &path).await, "OK");
    let back = bytes_of(cli(&["--raw", "GET", "blob"])).await;
    same(back.strip_suffix(b"\n").unwrap_or(&back), &blob);
    behind.kept(watch, MARKER).await;
}

#[tokio::test]
async fn mariadb() {
    let behind = Behind::start(&[], Ground::mariadb).await;
    let watch = behind.watch().await;
    let sql = |statement: &str| behind.ground.mysql(behind.service(), statement);
    text_of(sql("create database shop; create table shop.books (id int, title longtext)")).await;
    let [mut writer, mut reader] =
        behind.addresses().map(|address| Session::start(behind.ground.mysql_session(address)));
    let count = "select count(*) from shop.books;";
    let insert = format!("begin; insert into shop.books values (1, '{MARKER}'); {count}");
    assert_eq!([writer.ask(&insert).await, reader.ask(count).await], ["1", "0"]);
    assert_eq!(writer.ask("commit; select 'done';").await, "done");
    assert_eq!(reader.ask("select title from shop.books;").await, MARKER);
    drop((writer, reader));
    let (_, blob) = behind.blob();
    let insert = behind.file("insert");
    let text = [b"insert into shop.books values (2, '", &blob[..], b"');\n"].concat();
    std::fs::write(&insert, text).expect("the folder can be written");
    fed(behind.ground.mysql_session(behind.service()), &insert).await;
    let back = bytes_of(sql("select title from shop.books where id = 2")).await;
    same(back.strip_suffix(b"\n").unwrap_or(&back), &blob);
    behind.kept(watch, MARKER).await;
}

#[tokio::test]
async fn smtp() {
    let behind = Behind::start(&[], Ground::smtp).await;
    let watch = behind.watch().await;
    let (path, blob) = behind.blob();
    let mail = [b"Subject: a book\n\n", &blob[..]].concat();
    std::fs::write(&path, &mail).expect("the folder can be written");
    let options = ["--crlf", "--mail-from", "shop@example.org", "--mail-rcpt", "you@example.org", "-T"];
    let options = [&options[..], &[path.to_str().expect("a UTF-8 path")]].concat();
    text_of(behind.ground.curl(&format!("smtp://{}", behind.service()), &options)).await;
    // Several mails in one session, each told by what the server says of the one before.
    let script = format!(
        "import smtplib, sys\nwith smtplib.SMTP(sys.argv[1], int(sys.argv[2])) as server:\n  for i in range(3):\n    \
         server.sendmail('shop@example.org', ['you@example.org'], f'Subject: {{i}}\\n\\n{MARKER}\\n')\n"
    );
    let [_, v6] = behind.addresses();
    let mut python = behind.client.host.command(1000, "/usr/bin/python3");
    python.args(["-c", &script, &v6.ip().to_string(), &v6.port().to_string()]);
    text_of(python).await;
    let arrived = std::fs::read_dir(behind.process.folder.path().join("mail/new")).expect("a mailbox");
    let mut arrived: Vec<String> = arrived
        .map(|mail| std::fs::read_to_string(mail.expect("a file").path()).expect("text").replace('\r', ""))
        .collect();
    arrived.sort_by_key(String::len);
    let [one, two, three, large] = &arrived[..] else { panic!("{} mails", arrived.len()) };
    assert!([one, two, three].iter().all(|mail| mail.contains(MARKER)), "{one}");
    let body = large.split_once("\n\n").expect("a mail has a header").1;
    same(body.trim_end().as_bytes(), String::from_utf8(blob).expect("text").trim_end().as_bytes());
    behind.kept(watch, MARKER).await;
}

#[tokio::test]
async fn mqtt() {
    let behind = Behind::start(&[], Ground::mosquitto).await;
    let watch = behind.watch().await;
    for address in behind.addresses() {
        text_of(behind.ground.mosquitto_pub(address, "shop/books", MARKER)).await;
        assert_eq!(text_of(behind.ground.mosquitto_sub(address, "shop/books")).await, MARKER);
    }
    let (path, blob) = behind.blob();
    let mut sessions: Vec<Session> =
        (0..2).map(|_| Session::start(behind.ground.mosquitto_sub(behind.service(), "shop/blob"))).collect();
    text_of(behind.ground.mosquitto_pub_file(behind.service(), "shop/blob", &path)).await;
    let lines: Vec<&str> = std::str::from_utf8(&blob).expect("text").lines().collect();
    for session in &mut sessions {
        for line in &lines {
            assert_eq!(session.line().await, *line);
        }
    }
    drop(sessions);
    behind.kept(watch, MARKER).await;
}

#[tokio::test]
async fn ftp_with_its_data_connections() {
    // The port of the data is the Service's too, so that it is found at the Service's address.
    let behind = Behind::start(&[1], Ground::vsftpd).await;
    let watch = behind.watch().await;
    let (path, blob) = behind.blob();
    let path = path.to_str().expect("a UTF-8 path");
    let own = SocketAddr::new(behind.server.host.v4.into(), behind.process.address.port());
    let passive = ["--disable-epsv", "--no-ftp-skip-pasv-ip"];
    for (name, address, options) in [
        ("extended", behind.service(), &[][..]),
        ("six", behind.addresses()[1], &[]),
        ("direct", own, &[]),
        ("classic", own, &passive),
    ] {
        let url = format!("ftp://{address}/incoming/{name}");
        text_of(behind.ground.curl(&url, &[options, &["-T", path]].concat())).await;
        let arrived = behind.process.folder.path().join("files/incoming").join(name);
        same(&std::fs::read(&arrived).expect("it has arrived"), &blob);
        same(&bytes_of(behind.ground.curl(&url, options)).await, &blob);
    }
    let list = text_of(behind.ground.curl(&format!("ftp://{own}/incoming/"), &["--list-only"])).await;
    assert!(list.lines().any(|name| name == "classic"), "{list}");
    behind.kept(watch, MARKER).await;
}

#[tokio::test]
async fn tls_of_its_own() {
    const NAME: &str = "organza.example";
    let behind = Behind::start(&[], async |ground: &Ground| ground.nginx(NAME).await).await;
    let folder = behind.process.folder.path();
    let (path, blob) = behind.blob();
    std::fs::copy(&path, folder.join("files/page")).expect("the folder can be written");
    let watch = behind.watch().await;
    let authority = folder.join("cert.pem");
    let authority = authority.to_str().expect("a UTF-8 path");
    let url = |path: &str| format!("https://{NAME}:{PORT}/{path}");
    for ip in SERVICE {
        let place = format!("{NAME}:{PORT}:{ip}");
        let options = ["--resolve", &place, "--cacert", authority];
        same(&bytes_of(behind.ground.curl(&url("page"), &options)).await, &blob);
        let data = format!("@{}", path.display());
        let post = [&options[..], &["--data-binary", &data]].concat();
        assert_eq!(text_of(behind.ground.curl(&url(""), &post)).await, "kept");
    }
    let kept =
        std::fs::read_dir(folder.join("kept")).expect("a folder").map(|file| file.expect("a file").path());
    let kept: Vec<_> = kept.map(|file| std::fs::read(file).expect("it can be read")).collect();
    assert_eq!(kept.len(), 2);
    kept.iter().for_each(|body| same(body, &blob));

    // The certificate that arrives is the server's own, and it is the server that ends the session.
    let request = behind.file("request");
    std::fs::write(&request, "HEAD /page HTTP/1.0\r\n\r\n").expect("the folder can be written");
    let mut openssl = behind.client.host.command(0, "openssl");
    openssl.args(["s_client", "-connect", &behind.service().to_string(), "-servername", NAME]);
    openssl.args(["-CAfile", authority, "-verify_return_error", "-verify_hostname", NAME, "-ign_eof"]);
    let said = fed(openssl, &request).await;
    assert!(said.contains("Verify return code: 0 (ok)") && said.contains("HTTP/1.1 200 OK"), "{said}");
    // Not even for which server it was.
    behind.kept(watch, NAME).await;
}
