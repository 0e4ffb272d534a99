//! An HTTP/2 application whose streams do what their paths say, and a client that sees single frames' effects.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::{LIMIT, script};

/// A running HTTP/2 application, in plaintext with prior knowledge. Ends when dropped.
///
/// - `/reset` starts its answer and resets the stream with `ENHANCE_YOUR_CALM`.
/// - `/last` answers and says that this was the connection's last stream (GOAWAY).
/// - `/hold` starts its answer and waits for the client to go.
/// - `/echo` sends back what it gets.
/// - `/test.Echo/Headers` is answered with the lines `NAME: VALUE` of the request's headers that begin with `x-`.
/// - Everything else is answered with the application's name.
pub struct H2App {
    /// Where it listens.
    pub address: SocketAddr,
    events: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl H2App {
    /// Starts one with a name.
    pub async fn start(name: &'static str) -> Self {
        Self::start_as(name, false).await
    }

    /// Starts one that answers clients of HTTP/1.1 as well, with its name.
    pub async fn start_both(name: &'static str) -> Self {
        Self::start_as(name, true).await
    }

    async fn start_as(name: &'static str, both: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, name, both, log.clone()));
            }
        });
        Self { address, events, task }
    }

    /// What happened so far: `connection`, `connection of HTTP/1`, each request's path, and `cancelled` for a client that went.
    pub fn events(&self) -> Vec<String> {
        self.events.lock().expect("no test thread panics with it").clone()
    }

    /// How often something happened.
    pub fn count(&self, event: &str) -> usize {
        self.events().iter().filter(|each| *each == event).count()
    }
}

impl Drop for H2App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Events = Arc<Mutex<Vec<String>>>;

fn log(events: &Events, event: &str) {
    events.lock().expect("no test thread panics with it").push(event.into());
}

async fn connection(stream: TcpStream, name: &'static str, both: bool, events: Events) {
    let mut first = [0; 1];
    if both && stream.peek(&mut first).await.is_ok() && first != *b"P" {
        log(&events, "connection of HTTP/1");
        return crate::app::serve(stream, Arc::new(move |_: &_| script(200, name)), Arc::default()).await;
    }
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    log(&events, "connection");
    let mut streams = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        log(&events, &path);
        streams.spawn(answer(request, respond, path.clone(), name, events.clone()));
        if path == "/last" {
            connection.graceful_shutdown();
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    path: String,
    name: &'static str,
    events: Events,
) {
    let head = Response::builder().header("x-app", name).body(()).expect("a valid head");
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    let (head, mut body) = request.into_parts();
    match path.as_str() {
        "/reset" => {
            let _ = stream.send_data(Bytes::from_static(b"half"), false);
            // What was sent before a reset may be dropped with it: the client asks for the reset by its own body's end.
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
            stream.send_reset(Reason::ENHANCE_YOUR_CALM);
        }
        "/hold" => {
            let _ = stream.send_data(Bytes::from_static(b"held"), false);
            let gone = std::future::poll_fn(|context| stream.poll_reset(context)).await;
            if gone.is_ok() {
                log(&events, "cancelled");
            }
        }
        "/echo" => {
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                let _ = stream.send_data(data, false);
            }
            let _ = stream.send_data(Bytes::new(), true);
        }
        "/test.Echo/Headers" => {
            let own = head.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-"));
            let lines =
                own.map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
            let _ = stream.send_data(Bytes::from(lines.collect::<String>()), true);
        }
        _ => {
            let _ = stream.send_data(Bytes::from_static(name.as_bytes()), true);
        }
    }
}

/// An HTTP/2 connection of a client. Ends when dropped.
pub struct H2Client {
    requests: SendRequest<Bytes>,
    task: JoinHandle<()>,
}

/// A request that is under way.
pub struct Call {
    /// The client's side; dropping it before its end resets the stream.
    pub send: SendStream<Bytes>,
    /// The answer's status and application.
    pub head: (u16, String),
    /// The answer's body.
    pub body: RecvStream,
}

impl H2Client {
    /// Connects in plaintext with prior knowledge.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (requests, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        let task = tokio::spawn(async move {
            // Its end shows in each of its streams.
            let _ = connection.await;
        });
        Self { requests, task }
    }

    /// Sends a head and waits for the answer's.
    pub async fn call(&self, path: &str, headers: &[(&str, &str)]) -> Result<Call, h2::Error> {
        let mut request = Request::post(format!("http://echo.shop{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let ready = timeout(LIMIT, self.requests.clone().ready()).await.expect("in time");
        let (response, send) = ready?.send_request(request.body(()).expect("a valid request"), false)?;
        let response = timeout(LIMIT, response).await.expect("an answer in time")?;
        let app = response.headers().get("x-app").and_then(|app| app.to_str().ok()).unwrap_or_default();
        let head = (response.status().as_u16(), app.to_owned());
        Ok(Call { send, head, body: response.into_body() })
    }

    /// Sends a head; `end`: that is all. The answer to come, and where the body goes.
    pub async fn send(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let ready = timeout(LIMIT, self.requests.clone().ready()).await.expect("in time");
        ready?.send_request(request, end)
    }

    /// Sends a request without a body; the whole answer's body.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<(u16, String), h2::Error> {
        let mut call = self.call_without_body(path, headers).await?;
        let mut text = String::new();
        while let Some(data) = call.next().await {
            text.push_str(&String::from_utf8_lossy(&data?));
        }
        Ok((call.head.0, text))
    }

    async fn call_without_body(&self, path: &str, headers: &[(&str, &str)]) -> Result<Call, h2::Error> {
        let mut call = self.call(path, headers).await?;
        // The other end may have finished, and have no use for our end.
        let _ = call.send.send_data(Bytes::new(), true);
        Ok(call)
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Call {
    /// The next piece of the answer's body; `None` at its end.
    pub async fn next(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let data = timeout(LIMIT, self.body.data()).await.expect("data in time")?;
        if let Ok(data) = &data {
            let _ = self.body.flow_control().release_capacity(data.len());
        }
        Some(data)
    }
}
