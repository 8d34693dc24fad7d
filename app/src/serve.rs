//! The running service: its start, its routes, what signals do to it, and its end. Handlers take everything from
//! [`Service`].

use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use model_lock::Digest;
use model_lock::live::{Live, Loaded, LoadedModel};
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
use crate::state::{DEFAULT, Service, Weights, load, reload, setup, summary};
use crate::{COULD_NOT, NO, fail};

/// The header that names the model that is to answer.
const CHOICE: HeaderName = HeaderName::from_static("x-model");

/// The longest body: 64 numbers with all their digits fit many times.
const BODY_LIMIT: usize = 16 * 1024;
/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(5);
/// How long open requests may take to finish after SIGTERM; engines kill 10 s after it.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, and exchanges the models on SIGHUP.
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
    // SIGHUP would end the process too; one that comes now leads to a reload once the service is up.
    let (mut stop, hangup) = match Stop::new().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?))) {
        Ok(handlers) => handlers,
        Err(cause) => return fail(COULD_NOT, [format!("cannot handle signals: {cause}")]),
    };
    let (begin, setup, verify) = (Instant::now(), setup(config), config.verify);
    let loading = tokio::task::spawn_blocking(move || load(setup, verify));
    let models = tokio::select! {
        loaded = loading => match loaded {
            Ok(Ok(models)) => models,
            Ok(Err(refused)) => return fail(NO, refused),
            Err(cause) => return fail(COULD_NOT, [format!("cannot load the models: {cause}")]),
        },
        name = stop.requested() => return stopped(name),
    };
    let first = models.current();
    log(summary(first.models.iter().map(|model| &model.pin), verify, begin));
    if let Some(at) = &first.mounted {
        log(format_args!("the models are those of `{}`, {}", at.display(), first.lock));
    }
    drop(first);

    let bound =
        async { TcpListener::bind(config.listen).await.and_then(|l| l.local_addr().map(|address| (l, address))) };
    let (listener, address) = match bound.await {
        Ok(bound) => bound,
        Err(cause) => return fail(COULD_NOT, [format!("cannot listen on {}: {cause}", config.listen)]),
    };
    let models = Arc::new(models);
    // Its requests wait in the listener's queue until it is served.
    log(format_args!("listening on http://{address}"));
    tokio::spawn(reload_on(hangup, Arc::clone(&models)));
    let service = Service { models, commit: config.revision.as_deref().map(Arc::from) };
    listen(listener, router(service), stop).await
}

/// Reloads at each SIGHUP, one after the other. However many come during a reload, one more follows it: the signal is
/// kept until it is received, and it is received only between reloads.
async fn reload_on(mut hangup: Signal, models: Arc<Live<Weights>>) {
    while hangup.recv().await.is_some() {
        let reloading = Arc::clone(&models);
        let line = tokio::task::spawn_blocking(move || reload(&reloading)).await;
        log(line.unwrap_or_else(|cause| format!("reload refused, still serving {}: {cause}", models.current())));
    }
}

async fn listen(listener: TcpListener, router: Router, mut stop: Stop) -> ExitCode {
    let (finish, finishing) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        let _ = finishing.await;
    });
    let mut server = pin!(server.into_future());
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
    /// The lock that pins every model below.
    lock: Digest,
    /// Where that lock is mounted; nothing for the one that the program was built with.
    mounted: Option<String>,
    policy: String,
    commit: Option<&'a str>,
    default: &'a str,
    models: Vec<ListedModel<'a>>,
}

#[derive(Serialize)]
struct ListedModel<'a> {
    name: &'a str,
    digest: Digest,
    source: &'a str,
    revision: &'a str,
    target: &'a str,
    license: Option<&'a str>,
    files: Vec<ListedFile<'a>>,
}

#[derive(Serialize)]
struct ListedFile<'a> {
    path: &'a str,
    size: u64,
    digest: Digest,
}

async fn list(State(service): State<Service>) -> Response {
    let current = service.models.current();
    let models = current.models.iter().map(|LoadedModel { pin, value, .. }| ListedModel {
        name: pin.name(),
        digest: value.digest,
        source: pin.source(),
        revision: pin.revision(),
        target: pin.target(),
        license: pin.license(),
        files: (pin.files().into_iter())
            .map(|file| ListedFile { path: file.path, size: file.size, digest: file.digest })
            .collect(),
    });
    let listing = Listing {
        lock: current.lock,
        mounted: current.mounted.as_ref().map(|at| at.display().to_string()),
        policy: service.models.setup().policy.to_string(),
        commit: service.commit.as_deref(),
        default: DEFAULT,
        models: models.collect(),
    };
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
    model: AnsweredBy<'a>,
    commit: Option<&'a str>,
}

#[derive(Serialize)]
struct AnsweredBy<'a> {
    name: &'a str,
    digest: Digest,
    lock: Digest,
}

async fn predict(State(service): State<Service>, request: Request) -> Result<Response, Failure> {
    let headers = request.headers().clone();
    if !is_json(&headers) {
        let cause = "the content type must be application/json";
        return Err(Failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, cause.to_owned()));
    }
    let pixels = pixels(&body(request).await?)?;
    // From here on there is one set of models, whatever happens to the current one.
    let current = service.models.current();
    let LoadedModel { pin, value: weights, .. } = chosen(&current, &headers)?;
    let probabilities = weights.classifier.probabilities(&pixels);
    let prediction = Prediction {
        label: most_likely(&probabilities),
        probabilities,
        model: AnsweredBy { name: pin.name(), digest: weights.digest, lock: current.lock },
        commit: service.commit.as_deref(),
    };
    Ok(Json(prediction).into_response())
}

async fn body(request: Request) -> Result<Bytes, Failure> {
    let read = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, &())).await.map_err(|_| {
        let seconds = BODY_TIME.as_secs();
        Failure(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {seconds} s"))
    })?;
    read.map_err(|rejection| match rejection.status() {
        status @ StatusCode::PAYLOAD_TOO_LARGE => Failure(status, format!("the body is over {BODY_LIMIT} bytes")),
        status => Failure(status, "the body could not be read to its end".to_owned()),
    })
}

/// The model that the request names, or the default.
fn chosen<'a>(models: &'a Loaded<Weights>, headers: &HeaderMap) -> Result<&'a LoadedModel<Weights>, Failure> {
    let mut values = headers.get_all(CHOICE).iter();
    let name = match (values.next(), values.next()) {
        (None, _) => DEFAULT.into(),
        (Some(value), None) => String::from_utf8_lossy(value.as_bytes()),
        // Proxies differ in which of two they look at.
        (Some(_), Some(_)) => {
            return Err(Failure(StatusCode::BAD_REQUEST, format!("there is more than one `{CHOICE}` header")));
        }
    };
    models.model(&name).ok_or_else(|| {
        let known: Vec<_> = models.models.iter().map(|model| format!("`{}`", model.pin.name())).collect();
        let quoted: String = name.chars().take(100).flat_map(char::escape_debug).collect();
        Failure(StatusCode::NOT_FOUND, format!("there is no model `{quoted}`, only {}", known.join(", ")))
    })
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
