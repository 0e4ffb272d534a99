//! `recommend`: a book for a customer, over gRPC.
//!
//! ```proto
//! package bookshop.v1;
//! service Recommend { rpc ForCustomer(Customer) returns (Book); }
//! message Customer { string name = 1; }
//! message Book { string title = 1; }
//! ```

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::Service;

const METHOD: &str = "/bookshop.v1.Recommend/ForCustomer";

#[derive(Clone, PartialEq, prost::Message)]
struct Customer {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Book {
    #[prost(string, tag = "1")]
    title: String,
}

pub(super) async fn serve(
    listener: TcpListener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), String> {
    let incoming = TcpListenerStream::new(listener);
    let server = Server::builder().add_service(Recommend).serve_with_incoming_shutdown(incoming, end);
    server.await.map_err(|error| error.to_string())
}

/// A client of recommend.
#[derive(Clone)]
pub(super) struct Recommender(Channel);

impl Recommender {
    /// A client that connects when it is first used.
    pub(super) fn new(address: &str) -> Result<Self, String> {
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        Ok(Self(endpoint.connect_lazy()))
    }

    /// A book for a customer.
    pub(super) async fn recommend(&self, customer: &str, trace: &HeaderMap) -> Result<String, Status> {
        let mut client = tonic::client::Grpc::new(self.0.clone());
        client.ready().await.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
        let request = tonic::Request::from_parts(
            MetadataMap::from_headers(trace.clone()),
            http::Extensions::default(),
            Customer { name: customer.into() },
        );
        let codec = ProstCodec::<Customer, Book>::default();
        let response = client.unary(request, PathAndQuery::from_static(METHOD), codec).await?;
        Ok(response.into_inner().title)
    }
}

#[derive(Clone)]
struct Recommend;

impl NamedService for Recommend {
    const NAME: &'static str = "bookshop.v1.Recommend";
}

impl Service<Request<Body>> for Recommend {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let codec = ProstCodec::<Book, Customer>::default();
            Ok(tonic::server::Grpc::new(codec).unary(ForCustomer, request).await)
        })
    }
}

struct ForCustomer;

impl UnaryService<Customer> for ForCustomer {
    type Response = Book;
    type Future = std::future::Ready<Result<tonic::Response<Book>, Status>>;

    fn call(&mut self, request: tonic::Request<Customer>) -> Self::Future {
        let title = format!("A second book for {}", request.into_inner().name);
        std::future::ready(Ok(tonic::Response::new(Book { title })))
    }
}
