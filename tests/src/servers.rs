//! Servers of others that no HTTP client could speak to: databases, a cache, a broker, mail, files.
//!
//! In: where to run. Out: a real server on a port of the kernel's choice, with everything that it writes in a folder of
//! its own, which is ready when the call returns and gone when it is dropped; and for each the client that belongs to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Blocking, Stdio};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::process::Command;

use crate::program::{NGINX, NGINX_ALONE};
use crate::{LIMIT, output_of, wait_for};

/// Where programs run: an address to listen on, and how to get there.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The address that servers listen on.
    pub ip: IpAddr,
    /// What stands before each command, as `ip netns exec NAME` does.
    pub before: Vec<String>,
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it keeps.
    pub folder: TempDir,
    name: &'static str,
    child: Child,
}

impl Default for Ground {
    /// On loopback, right here.
    fn default() -> Self {
        Self { ip: Ipv4Addr::LOCALHOST.into(), before: Vec::new() }
    }
}

impl Ground {
    /// PostgreSQL, whose user `postgres` needs no password.
    pub async fn postgres(&self) -> Server {
        let programs = postgres_programs();
        let (folder, data) = folder("data");
        let user = own(&folder, "postgres");
        let mut init = self.command(user, programs.join("initdb"));
        init.arg("-D").arg(&data).args([
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
        ]);
        succeed(init).await;
        // What is made above is for loopback alone.
        std::fs::write(data.join("pg_hba.conf"), "host all all all trust\n").expect("root may");
        let address = self.free_port();
        let mut command = self.command(user, programs.join("postgres"));
        command.arg("-D").arg(&data).args(["-p", &address.port().to_string()]);
        for setting in
            [&format!("listen_addresses={}", address.ip()), "unix_socket_directories=", "fsync=off"]
        {
            command.args(["-c", setting]);
        }
        self.serve("postgres", command, folder, address, || self.psql(address, "select 1")).await
    }

    /// One statement by psql, whose output is the bare values.
    pub fn psql(&self, server: SocketAddr, statement: &str) -> Command {
        let mut command = self.psql_session(server);
        command.args(["-c", statement]);
        command
    }

    /// psql, which takes statements from its standard input.
    pub fn psql_session(&self, server: SocketAddr) -> Command {
        let mut command = self.command(None, "psql");
        command.args(["-h", &server.ip().to_string(), "-p", &server.port().to_string()]);
        command.args(["-U", "postgres", "-d", "postgres", "-X", "-At"]);
        command
    }

    /// Redis.
    pub async fn redis(&self) -> Server {
        let address = self.free_port();
        let (folder, data) = folder("data");
        std::fs::create_dir(&data).expect("the folder is new");
        let mut command = self.command(None, "redis-server");
        command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
        command
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--daemonize",
                "no",
                "--protected-mode",
                "no",
                "--dir",
            ])
            .arg(&data);
        self.serve("redis", command, folder, address, || self.redis_cli(address, &["PING"])).await
    }

    /// One command by redis-cli.
    pub fn redis_cli(&self, server: SocketAddr, words: &[&str]) -> Command {
        let mut command = self.command(None, "redis-cli");
        command.args(["-h", &server.ip().to_string(), "-p", &server.port().to_string()]);
        command.args(["-e", "--no-raw"]).args(words);
        command
    }

    /// MariaDB, whose user `test` needs no password and may do everything.
    pub async fn mariadb(&self) -> Server {
        let (folder, data) = folder("data");
        let user = own(&folder, "mysql");
        let mut init = self.command(user, "mariadb-install-db");
        init.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        init.arg(format!("--datadir={}", data.display()));
        succeed(init).await;
        let grants = folder.path().join("init.sql");
        // A statement a line.
        std::fs::write(&grants, "CREATE USER test;\nGRANT ALL ON *.* TO test;\n")
            .expect("the folder can be written");
        let address = self.free_port();
        let mut command = self.command(user, "mariadbd");
        command.args(["--no-defaults", "--skip-name-resolve", "--innodb-log-file-size=4M"]);
        command.arg(format!("--datadir={}", data.display()));
        command.arg(format!("--socket={}", folder.path().join("socket").display()));
        command.arg(format!("--pid-file={}", folder.path().join("pid").display()));
        command.arg(format!("--init-file={}", grants.display()));
        command.arg(format!("--bind-address={}", address.ip())).arg(format!("--port={}", address.port()));
        self.serve("mariadb", command, folder, address, || self.mysql(address, "select 1")).await
    }

    /// One statement by the mysql client, whose output is the bare values.
    pub fn mysql(&self, server: SocketAddr, statement: &str) -> Command {
        let mut command = self.mysql_session(server);
        command.args(["-e", statement]);
        command
    }

    /// The mysql client, which takes statements from its standard input.
    pub fn mysql_session(&self, server: SocketAddr) -> Command {
        let mut command = self.command(None, "mariadb");
        command.args(["--no-defaults", "--protocol=tcp", "--unbuffered", "-u", "test", "-N", "-B", "--raw"]);
        command.args(["-h", &server.ip().to_string(), "-P", &server.port().to_string()]);
        command
    }

    /// aiosmtpd, which puts the mail that it takes into `mail/new` of its folder.
    pub async fn smtp(&self) -> Server {
        let address = self.free_port();
        let (folder, mail) = folder("mail");
        let mut command = self.command(None, crate::program::python_program());
        command.args(["-m", "aiosmtpd", "-n", "-l", &address.to_string()]);
        command.args(["-c", "aiosmtpd.handlers.Mailbox"]).arg(&mail);
        self.serve("smtp", command, folder, address, || {
            self.curl(&format!("smtp://{address}"), &["-X", "NOOP"])
        })
        .await
    }

    /// Mosquitto, an MQTT broker.
    pub async fn mosquitto(&self) -> Server {
        let address = self.free_port();
        let (folder, config) = folder("mosquitto.conf");
        let text = format!("listener {} {}\nallow_anonymous true\nuser root\n", address.port(), address.ip());
        std::fs::write(&config, text).expect("the folder can be written");
        let mut command = self.command(None, "mosquitto");
        command.arg("-c").arg(&config);
        self.serve("mosquitto", command, folder, address, || self.mosquitto_pub(address, "ready", "yes"))
            .await
    }

    /// Publishes a message that stays.
    pub fn mosquitto_pub(&self, server: SocketAddr, topic: &str, message: &str) -> Command {
        let mut command = self.publish(server, topic);
        command.args(["-m", message]);
        command
    }

    /// Publishes a file as a message that stays.
    pub fn mosquitto_pub_file(&self, server: SocketAddr, topic: &str, file: &Path) -> Command {
        let mut command = self.publish(server, topic);
        command.arg("-f").arg(file);
        command
    }

    fn publish(&self, server: SocketAddr, topic: &str) -> Command {
        let mut command = self.command(None, "mosquitto_pub");
        command.args(["-h", &server.ip().to_string(), "-p", &server.port().to_string()]);
        command.args(["-q", "1", "-r", "-t", topic]);
        command
    }

    /// Waits for the first message of a topic, and prints it.
    pub fn mosquitto_sub(&self, server: SocketAddr, topic: &str) -> Command {
        let mut command = self.command(None, "mosquitto_sub");
        command.args(["-h", &server.ip().to_string(), "-p", &server.port().to_string()]);
        command.args(["-q", "1", "-C", "1", "-W", "15", "-t", topic]);
        command
    }

    /// vsftpd, which shows the folder `files` to anonymous users, and takes theirs in `files/incoming`. Passive data
    /// connections go to the port after its own. Needs root, as vsftpd does.
    pub async fn vsftpd(&self) -> Server {
        let address = self.free_port();
        let (folder, config) = folder("vsftpd.conf");
        let (files, empty) = (folder.path().join("files"), folder.path().join("empty"));
        let incoming = files.join("incoming");
        for path in [&files, &empty, &incoming] {
            std::fs::create_dir(path).expect("the folder is new");
        }
        open_to_all(folder.path());
        give(&incoming, "ftp");
        let (listen, listen_address) =
            if address.is_ipv4() { ("listen", "listen_address") } else { ("listen_ipv6", "listen_address6") };
        let other = if address.is_ipv4() { "listen_ipv6" } else { "listen" };
        let data = address.port() + 1;
        let text = format!(
            "{listen}=YES\n{other}=NO\n{listen_address}={}\nlisten_port={}\nbackground=NO\nanonymous_enable=YES\n\
             write_enable=YES\nanon_upload_enable=YES\nanon_umask=022\n\
             pasv_min_port={data}\npasv_max_port={data}\nanon_root={}\nsecure_chroot_dir={}\nno_anon_password=YES\nseccomp_sandbox=NO\n",
            address.ip(),
            address.port(),
            files.display(),
            empty.display(),
        );
        std::fs::write(&config, text).expect("the folder can be written");
        let mut command = self.command(None, "vsftpd");
        command.arg(&config);
        self.serve("vsftpd", command, folder, address, || {
            self.curl(&format!("ftp://{address}/"), &["--head"])
        })
        .await
    }

    /// nginx with TLS of its own for `name`, whose certificate is `cert.pem`. It serves the files in `files`, and keeps what
    /// is posted to `/` in `kept`.
    pub async fn nginx(&self, name: &str) -> Server {
        let address = self.free_port();
        let (folder, config) = folder("nginx.conf");
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new([name.to_owned()]).expect("a host name");
        let certificate = certificate.self_signed(&key).expect("a key").pem();
        for (file, text) in [("cert.pem", &certificate), ("key.pem", &key.serialize_pem())] {
            std::fs::write(folder.path().join(file), text).expect("the folder can be written");
        }
        for path in ["files", "kept"] {
            std::fs::create_dir(folder.path().join(path)).expect("the folder is new");
        }
        let dir = folder.path().to_str().expect("a UTF-8 path");
        let text = format!("{NGINX}{TLS_SITE}").replace("@@ADDRESS@@", &address.to_string());
        std::fs::write(&config, text.replace("@@DIR@@", dir)).expect("the folder can be written");
        let mut command = self.command(None, "nginx");
        command.arg("-p").arg(folder.path()).arg("-c").arg(&config).args(["-e", "stderr"]);
        command.args(["-g", NGINX_ALONE]);
        // The certificate is for a name that nobody resolves here.
        self.serve("nginx", command, folder, address, || self.curl(&format!("https://{address}/"), &["-k"]))
            .await
    }

    /// curl, which speaks SMTP and FTP too.
    pub fn curl(&self, url: &str, options: &[&str]) -> Command {
        let plain = crate::curl();
        let plain = plain.as_std();
        let mut command = self.command(None, plain.get_program());
        command.args(plain.get_args());
        for (name, _) in plain.get_envs() {
            command.env_remove(name);
        }
        command.args(options).arg(url);
        command
    }

    /// A command there, as `user` if one is given.
    pub(crate) fn command(&self, user: Option<&str>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut words: Vec<&str> = self.before.iter().map(String::as_str).collect();
        if let Some(user) = user {
            words.extend(["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]);
        }
        match words.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// An address that nobody has.
    pub(crate) fn free_port(&self) -> SocketAddr {
        SocketAddr::new(self.ip, crate::free_port())
    }

    async fn serve(
        &self,
        name: &'static str,
        command: Command,
        folder: TempDir,
        address: SocketAddr,
        ask: impl Fn() -> Command,
    ) -> Server {
        let mut command: Blocking = command.into_std();
        let log = std::fs::File::create(folder.path().join("log")).expect("the folder can be written");
        let same = log.try_clone().expect("a file");
        // A group of its own, so that all that it starts can be ended with it.
        command.stdin(Stdio::null()).stdout(log).stderr(same).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}; run tests/setup"));
        let mut server = Server { address, folder, name, child };
        let ready = || async {
            let output = output_of(ask()).await;
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        };
        let ready = wait_for(LIMIT * 2, ready).await;
        let ended = server.child.try_wait().ok().flatten();
        ready.unwrap_or_else(|error| panic!("{name} is not ready ({ended:?}): {error}\n{}", server.log()));
        server
    }
}

impl Server {
    /// What it has written to its standard output and error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let id = self.child.id();
        let signal = |signal: &str, target: String| {
            let _ = Blocking::new("kill").args([signal, "--", &target]).stderr(Stdio::null()).status();
        };
        // PostgreSQL leaves shared memory behind when it is killed, and waits for its clients on SIGTERM.
        signal(if self.name == "postgres" { "-INT" } else { "-TERM" }, id.to_string());
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        signal("-KILL", format!("-{id}"));
        let _ = self.child.wait();
    }
}

/// nginx keeps a body by passing it on to itself.
const TLS_SITE: &str = "
  client_max_body_size 64m;
  server {
    listen @@ADDRESS@@ ssl;
    ssl_certificate @@DIR@@/cert.pem;
    ssl_certificate_key @@DIR@@/key.pem;
    location = / {
      client_body_temp_path @@DIR@@/kept;
      client_body_in_file_only on;
      proxy_pass http://unix:@@DIR@@/socket:/;
    }
    location / {
      root @@DIR@@/files;
    }
  }
  server {
    listen unix:@@DIR@@/socket;
    return 200 kept;
  }
}
";

/// How long a server may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// A new folder, and the path of something in it.
fn folder(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("tulle-server-").tempdir().expect("a folder");
    let path = folder.path().join(name);
    (folder, path)
}

/// Gives a folder to `user`, where this user could: some servers refuse to run as root.
fn own<'a>(folder: &TempDir, user: &'a str) -> Option<&'a str> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    root.then(|| {
        give(folder.path(), user);
        user
    })
}

fn give(path: &Path, user: &str) {
    let status = Blocking::new("chown").arg(user).arg(path).status();
    assert!(status.is_ok_and(|status| status.success()), "no user {user}; run tests/setup");
}

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder, all).expect("the folder is ours");
}

/// Debian keeps those of each version apart, outside the search path.
fn postgres_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest =
        versions.map(|entry| entry.path().join("bin")).filter(|path| path.join("initdb").exists()).max();
    newest.unwrap_or_else(|| Path::new("").into())
}

async fn succeed(command: Command) {
    let output = output_of(command).await;
    assert!(output.status.success(), "{output:?}");
}
