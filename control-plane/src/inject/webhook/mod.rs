//! The admission webhooks of port 15017: what the API server asks before it stores an object.
//!
//! | path | asked for | answer |
//! | --- | --- | --- |
//! | `/inject` | new Pods | a JSON Patch that puts a sidecar in, or nothing |
//! | `/validate` | routes on Services, Tulle's own kinds | whether the object can be in force, with `tulle check`'s words |
//!
//! In: AdmissionReviews (v1) over TLS. Out: the same with an answer. What can't be answered is an HTTP error, and the
//! webhook's `failurePolicy` decides. A pod is never refused: at worst it gets no sidecar, and its creator is told why.

mod authority;
pub mod certificates;
pub mod configuration;
pub mod events;
mod listener;
pub mod review;
mod validate;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, body::Bytes};
use k8s_openapi::api::core::v1 as core;
use rustls::ServerConfig;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::certificates::Certificates;
use self::events::Event;
use self::review::{Answer, Request, Review};
use super::{Namespace, Settings, Skip, patch};
use crate::metrics::Metrics;
use crate::source::Loaded;

/// The Service of the control plane, whose name the webhooks' certificate has.
pub const SERVICE: &str = "tulle-control-plane";

/// The longest review that is read, in bytes: an object and its earlier version, of 3 MiB each at most.
const MAX_REVIEW: usize = 8 << 20;

/// The most reviews that are worked on at one time; others wait.
const MAX_REVIEWS: usize = 16;

/// How long the API server may take to tell of a namespace. It gives up on webhooks after ten seconds.
const NAMESPACE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long reviews are still answered after the end was asked for: until every API server has heard that this replica ends,
/// some are sent to it, and a pod whose review nobody answers is made without a sidecar.
const LAME_DUCK: Duration = Duration::from_secs(5);

/// What the webhooks of a cluster stand on.
pub struct Serving {
    /// The API server.
    pub client: kube::Client,
    /// How sidecars are.
    pub settings: Settings,
    /// Names and addresses under which the webhooks are reached, beside the Service's.
    pub names: Vec<String>,
    /// What was read.
    pub loaded: watch::Receiver<Arc<Loaded>>,
    /// What became of reviews is counted here.
    pub metrics: Arc<Metrics>,
}

impl Serving {
    /// Serves on `listener` and keeps everything around the webhooks up to date, until a while after `stop`: the certificate
    /// authority in its Secret, the bundle in the webhooks' configurations, Events.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        let Self { client, settings, mut names, loaded, metrics } = self;
        let namespace = settings.namespace.clone();
        names.extend([format!("{SERVICE}.{namespace}.svc"), format!("{SERVICE}.{namespace}")]);
        let (events, waiting) = events::channel();
        let (tls, served) = watch::channel(None);
        let (bundle, trusted) = watch::channel(String::new());
        let namespaces = Namespaces { loaded, client: Some(client.clone()) };
        let webhook = Webhook { settings, namespaces, metrics, events: Some(events) };
        let certificates = Certificates { tls, bundle };
        // All but the first have no end of their own.
        let around = async {
            tokio::join!(
                certificates.keep(client.clone(), &namespace, &names),
                configuration::keep(client.clone(), trusted),
                events::publish(client, waiting),
            );
            std::future::pending().await
        };
        tokio::select! {
            result = webhook.serve(listener, served, stop) => result,
            () = around => Ok(()),
        }
    }
}

/// What answers reviews.
pub struct Webhook {
    /// How sidecars are.
    pub settings: Settings,
    /// Where namespaces are looked up.
    pub namespaces: Namespaces,
    /// What became of reviews is counted here.
    pub metrics: Arc<Metrics>,
    /// And told here.
    pub events: Option<events::Sender>,
}

impl Webhook {
    /// Serves connections until a while after `stop`; before there is a certificate, none is accepted.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: watch::Receiver<Option<Arc<ServerConfig>>>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let ended = CancellationToken::new();
        let listener = listener::TlsListener::new(listener, tls, ended.clone())?;
        let ending = async move {
            stop.cancelled().await;
            tokio::time::sleep(LAME_DUCK).await;
            ended.cancel();
        };
        axum::serve(listener, self.router()).with_graceful_shutdown(ending).await
    }

    fn router(self) -> Router {
        let state = Arc::new(Working { webhook: self, permits: Semaphore::new(MAX_REVIEWS) });
        Router::new()
            .route("/inject", post(inject))
            .route("/validate", post(validate))
            .layer(DefaultBodyLimit::max(MAX_REVIEW))
            .with_state(state)
    }
}

struct Working {
    webhook: Webhook,
    permits: Semaphore,
}

async fn inject(State(working): State<Arc<Working>>, body: Bytes) -> Response {
    let Ok(_permit) = working.permits.acquire().await else { return stopping() };
    let webhook = &working.webhook;
    let (review, request) = match Review::read(&body) {
        Ok(read) => read,
        Err(reason) => return refused(webhook, reason),
    };
    let Some(pod) = request.object.clone().filter(|_| request.is_pod()) else {
        return refused(webhook, "the review is not of a Pod".into());
    };
    let namespace = match webhook.namespaces.find(request.namespace.as_deref().unwrap_or_default()).await {
        Ok(namespace) => namespace,
        Err(reason) => {
            webhook.metrics.admission("error");
            return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
        }
    };
    let answer = match super::inject(&pod, &namespace, &webhook.settings) {
        Ok(injected) => {
            webhook.metrics.admission("Injected");
            // Where a controller makes the pods, nobody sees the answer's warnings.
            let note =
                [&["a sidecar was put into the pod".into()], &injected.warnings[..]].concat().join("; ");
            webhook.tell(&request, &pod, "Injected", note);
            Answer::allowed(&request)
                .patched(&patch::diff(&pod, &injected.template))
                .warned(injected.warnings.iter().map(|warning| format!("tulle: {warning}")))
        }
        Err(skip) => {
            webhook.metrics.admission(skip.reason());
            webhook.skipped(&request, &pod, &skip)
        }
    };
    Json(review.answered(answer)).into_response()
}

async fn validate(State(working): State<Arc<Working>>, body: Bytes) -> Response {
    let Ok(_permit) = working.permits.acquire().await else { return stopping() };
    let metrics = &working.webhook.metrics;
    let (review, request) = match Review::read(&body) {
        Ok(read) => read,
        Err(reason) => return refused(&working.webhook, reason),
    };
    // Reading an object of a megabyte takes a while.
    let judged = tokio::task::spawn_blocking(move || {
        let answer = validate::judge(&request);
        (answer.is_allowed(), answer)
    });
    match judged.await {
        Ok((allowed, answer)) => {
            metrics.admission(if allowed { "Valid" } else { "Invalid" });
            Json(review.answered(answer)).into_response()
        }
        Err(_) => {
            metrics.admission("error");
            (StatusCode::INTERNAL_SERVER_ERROR, "the object could not be judged").into_response()
        }
    }
}

fn refused(webhook: &Webhook, reason: String) -> Response {
    webhook.metrics.admission("error");
    (StatusCode::BAD_REQUEST, reason).into_response()
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "stopping").into_response()
}

impl Webhook {
    fn skipped(&self, request: &Request, pod: &Value, skip: &Skip) -> Answer {
        let answer = Answer::allowed(request);
        if skip.is_wanted() {
            return answer;
        }
        self.tell(request, pod, "InjectionSkipped", skip.to_string());
        answer.warned([format!("tulle: no sidecar was put into the pod: {skip}")])
    }

    fn tell(&self, request: &Request, pod: &Value, reason: &'static str, note: String) {
        let Some(events) = self.events.as_ref().filter(|_| !request.dry_run) else { return };
        events.send(Event { about: events::owner(request, pod), reason, note });
    }
}

/// Where namespaces are looked up: in what was read, and else at the API server, for those that are only just made.
pub struct Namespaces {
    /// What was read.
    pub loaded: watch::Receiver<Arc<Loaded>>,
    /// The API server, where there is one.
    pub client: Option<kube::Client>,
}

impl Namespaces {
    async fn find(&self, name: &str) -> Result<Namespace, String> {
        let loaded = Arc::clone(&self.loaded.borrow());
        if let Some(known) = loaded.objects.find::<core::Namespace>("", name) {
            return Ok(facts(name, &known.metadata));
        }
        let Some(client) = &self.client else {
            return Ok(Namespace { name: name.into(), ..Namespace::default() });
        };
        let all = kube::Api::<core::Namespace>::all(client.clone());
        match tokio::time::timeout(NAMESPACE_TIMEOUT, all.get(name)).await {
            Ok(Ok(namespace)) => Ok(facts(name, &namespace.metadata)),
            Ok(Err(error)) => Err(format!("namespace {name} can't be read: {error}")),
            Err(_) => Err(format!("namespace {name} can't be read: the API server does not answer")),
        }
    }
}

fn facts(name: &str, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Namespace {
    Namespace {
        name: name.into(),
        labels: meta.labels.clone().unwrap_or_default(),
        annotations: meta.annotations.clone().unwrap_or_default(),
    }
}
