//! The running service: its start, its routes and its end. Handlers take everything from [`Service`].

use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use model_lock::Digest;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::classifier::{CLASSES, FULL_INK, PIXELS, most_likely};
use crate::config::Config;
use crate::console::log;
use crate::state::{Models, Service, summary};
use crate::{COULD_NOT, NO, fail};

/// The longest body: 64 numbers with all their digits fit many times.
const BODY_LIMIT: usize = 16 * 1024;
/// How long open requests may take to finish after SIGTERM; engines kill 10 s after it.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(config: &Config) -> ExitCode {
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return fail(COULD_NOT, [format!("cannot start threads: {cause}")]),
    };
    let code = runtime.block_on(start(config));
    // Does not wait for a verification that a signal cut short.
    runtime.shutdown_background();
    code
}

async fn start(config: &Config) -> ExitCode {
    // Before anything that takes time: as the first process of a container, a signal without a handler is ignored.
    let mut stop = match Stop::new() {
        Ok(stop) => stop,
        Err(cause) => return fail(COULD_NOT, [format!("cannot handle signals: {cause}")]),
    };
    let (begin, root, verify) = (Instant::now(), config.root.clone(), config.verify);
    let loading = tokio::task::spawn_blocking(move || Models::load(&root, verify));
    let models = tokio::select! {
        loaded = loading => match loaded {
            Ok(Ok(models)) => models,
            Ok(Err(findings)) => return fail(NO, findings),
            Err(cause) => return fail(COULD_NOT, [format!("cannot load the models: {cause}")]),
        },
        name = stop.requested() => return stopped(name),
    };
    log(summary(verify, begin));

    let bound =
        async { TcpListener::bind(config.listen).await.and_then(|l| l.local_addr().map(|address| (l, address))) };
    let (listener, address) = match bound.await {
        Ok(bound) => bound,
        Err(cause) => return fail(COULD_NOT, [format!("cannot listen on {}: {cause}", config.listen)]),
    };
    let service = Service { models: Arc::new(models), commit: config.revision.as_deref().map(Arc::from) };
    listen(listener, address, router(service), stop).await
}

async fn listen(listener: TcpListener, address: SocketAddr, router: Router, mut stop: Stop) -> ExitCode {
    let (finish, finishing) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        let _ = finishing.await;
    });
    let mut server = pin!(server.into_future());
    log(format_args!("listening on http://{address}"));
    let name = tokio::select! {
        name = stop.requested() => name,
        Err(cause) = &mut server => return fail(COULD_NOT, [format!("cannot go on serving: {cause}")]),
    };
    drop(finish);
    if tokio::time::timeout(GRACE, server).await.is_err() {
        log(format_args!("gave up on requests that were still open after {} s", GRACE.as_secs()));
    }
    stopped(name)
}

fn stopped(name: &str) -> ExitCode {
    log(format_args!("stopped by {name}"));
    ExitCode::SUCCESS
}

struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn requested(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn router(service: Service) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(health))
        .route("/v1/models", get(list))
        .route("/v1/predict", post(predict))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(service)
}

/// An answer that is not the one hoped for: `{"error": …}`.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

async fn unknown_route(uri: Uri) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("there is no `{}` here", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Failure {
    Failure(StatusCode::METHOD_NOT_ALLOWED, format!("`{}` does not take {method}", uri.path()))
}

async fn page() -> impl IntoResponse {
    // The page is one file: nothing in it may reach elsewhere.
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                          img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(include_str!("page.html")))
}

async fn health() -> impl IntoResponse {
    Json(serde_json::json!({ "status": "ok" }))
}

#[derive(Serialize)]
struct Listing<'a> {
    lock: Digest,
    commit: Option<&'a str>,
    models: Vec<ListedModel>,
}

#[derive(Serialize)]
struct ListedModel {
    name: &'static str,
    digest: Digest,
    source: &'static str,
    revision: &'static str,
    target: &'static str,
    license: Option<&'static str>,
    files: Vec<ListedFile>,
}

#[derive(Serialize)]
struct ListedFile {
    path: &'static str,
    size: u64,
    digest: Digest,
}

async fn list(State(service): State<Service>) -> Response {
    let models = service.models.loaded.iter().map(|loaded| ListedModel {
        name: loaded.model.name,
        digest: loaded.digest,
        source: loaded.model.source,
        revision: loaded.model.revision,
        target: loaded.model.target,
        license: loaded.model.license,
        files: (loaded.model.files.iter())
            .map(|file| ListedFile { path: file.path, size: file.size, digest: file.digest })
            .collect(),
    });
    let listing = Listing { lock: service.models.lock, commit: service.commit.as_deref(), models: models.collect() };
    Json(listing).into_response()
}

/// The pixels stay text until they are checked one by one, so that an error can name the pixel and quote it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question<'a> {
    #[serde(borrow)]
    pixels: Vec<&'a RawValue>,
}

#[derive(Serialize)]
struct Prediction<'a> {
    label: usize,
    probabilities: [f32; CLASSES],
    model: AnsweredBy,
    commit: Option<&'a str>,
}

#[derive(Serialize)]
struct AnsweredBy {
    name: &'static str,
    digest: Digest,
}

async fn predict(
    State(service): State<Service>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    if !is_json(&headers) {
        let cause = "the content type must be application/json";
        return Err(Failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, cause.to_owned()));
    }
    let body = body.map_err(|rejection| match rejection.status() {
        status @ StatusCode::PAYLOAD_TOO_LARGE => Failure(status, format!("the body is over {BODY_LIMIT} bytes")),
        status => Failure(status, "the body could not be read to its end".to_owned()),
    })?;
    let pixels = pixels(&body)?;
    let answering = service.models.default();
    let probabilities = answering.classifier.probabilities(&pixels);
    let prediction = Prediction {
        label: most_likely(&probabilities),
        probabilities,
        model: AnsweredBy { name: answering.model.name, digest: answering.digest },
        commit: service.commit.as_deref(),
    };
    Ok(Json(prediction).into_response())
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// 400 for what is not JSON, 422 for JSON that is not an image.
fn pixels(body: &[u8]) -> Result<[f32; PIXELS], Failure> {
    let question: Question = serde_json::from_slice(body).map_err(|cause| match cause.classify() {
        Category::Data => Failure(StatusCode::UNPROCESSABLE_ENTITY, cause.to_string()),
        _ => Failure(StatusCode::BAD_REQUEST, format!("the body is not JSON: {cause}")),
    })?;
    let unfit = |cause| Failure(StatusCode::UNPROCESSABLE_ENTITY, cause);
    let found = question.pixels.len();
    let raw: [&RawValue; PIXELS] =
        question.pixels.try_into().map_err(|_| unfit(format!("found {found} pixels, expected {PIXELS}")))?;
    let mut pixels = [0.0; PIXELS];
    for (n, (pixel, raw)) in pixels.iter_mut().zip(raw).enumerate() {
        // A number too large for a float parses as infinite, so it is out of range like any other.
        *pixel = raw.get().parse().ok().filter(|value| (0.0..=FULL_INK).contains(value)).ok_or_else(|| {
            let quoted: String = raw.get().chars().take(40).collect();
            unfit(format!("pixel {n} is {quoted}, expected a number from 0 to {FULL_INK}"))
        })?;
    }
    Ok(pixels)
}
