//! Which path does what on the admin port, and who may ask.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Path, Query, Request, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{delete, get, post},
};
use serde_json::json;

use super::{
    Admin, AdminError, BODY_BYTES_MAX, PAGE_SESSIONS_MAX, Rendezvous, SHARDS_DEADLINE,
    SessionQuery,
    rendezvous::{CreateBody, CreatedBody, invalid},
};
use crate::control::metrics::{COMMIT, CONTENT_TYPE, VERSION};
use crate::control::noray_metrics::{self, Form};

const STATUS_PAGE: &str = include_str!("status.html");
/// The page loads nothing from anywhere and talks only to the port it came from.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Every route of the admin port.
pub(super) fn router(admin: Arc<Admin>) -> Router {
    let guarded = Router::new()
        .route("/v1/sessions", post(create_session).get(list_sessions))
        .route("/v1/sessions/{code}", delete(close_session))
        .route("/v1/turn-credentials", post(turn_credentials))
        .route("/v1/drain", post(drain))
        .route("/v1/stats", get(stats))
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), guard));
    Router::new()
        .route("/", get(status_page))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .merge(guarded)
        .fallback(|| async {
            refusal(
                StatusCode::NOT_FOUND,
                "not_found",
                "There is nothing at this path.",
            )
        })
        .method_not_allowed_fallback(|| async {
            let sentence = "This path does not know that method.";
            refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                sentence,
            )
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(no_store))
        .with_state(admin)
}

async fn status_page() -> Response {
    (
        [(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)],
        Html(STATUS_PAGE),
    )
        .into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut text = admin.metrics.render();
    if admin.shows_noray {
        let end = text.rfind("# EOF").unwrap_or(text.len());
        text.insert_str(
            end,
            &noray_metrics::render(&admin.metrics, Form::OpenMetrics),
        );
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

async fn livez(State(admin): State<Arc<Admin>>) -> Response {
    match admin.metrics.all_ticking() {
        true => (StatusCode::OK, "live\n").into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "a shard is stuck\n").into_response(),
    }
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    if admin.metrics.draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    } else if !admin.metrics.all_bound() {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    } else {
        (StatusCode::OK, "ready\n").into_response()
    }
}

async fn create_session(
    State(admin): State<Arc<Admin>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, AdminError> {
    let request = CreateBody::parse(&whole(body)?)?;
    if admin.metrics.draining() {
        let sentence = "The server is draining and takes no new sessions; ask another one.";
        return Err(AdminError::Unavailable(sentence.to_owned()));
    }
    let created = call(&admin, |rendezvous| rendezvous.create_session(request)).await?;
    Ok((StatusCode::CREATED, Json(CreatedBody::from(created))).into_response())
}

async fn turn_credentials(
    State(admin): State<Arc<Admin>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, AdminError> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let servers = admin.turn.ice_servers(&whole(body)?, now.as_secs())?;
    Ok(Json(servers).into_response())
}

fn whole(body: Result<Bytes, BytesRejection>) -> Result<Bytes, AdminError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            AdminError::TooLarge("The body is longer than 64 KiB.".to_owned())
        }
        _ => invalid("The body did not arrive whole."),
    })
}

async fn list_sessions(
    State(admin): State<Arc<Admin>>,
    query: Result<Query<SessionQuery>, QueryRejection>,
) -> Result<Response, AdminError> {
    let Query(query) = query.map_err(|rejection| invalid(format!("{}.", rejection.body_text())))?;
    if !(1..=PAGE_SESSIONS_MAX).contains(&query.limit) {
        return Err(invalid(format!(
            "limit is a number from 1 to {PAGE_SESSIONS_MAX}."
        )));
    }
    let page = call(&admin, |rendezvous| rendezvous.list_sessions(query)).await?;
    Ok(Json(page).into_response())
}

async fn close_session(
    State(admin): State<Arc<Admin>>,
    Path(code): Path<String>,
) -> Result<StatusCode, AdminError> {
    call(&admin, move |rendezvous| rendezvous.close_session(&code)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn drain(State(admin): State<Arc<Admin>>) -> Response {
    admin.metrics.set_draining();
    admin.drain_asked.notify_one();
    (StatusCode::ACCEPTED, Json(json!({ "draining": true }))).into_response()
}

async fn stats(State(admin): State<Arc<Admin>>) -> Response {
    let metrics = &admin.metrics;
    let states = metrics.shard_states().into_iter().enumerate();
    let shards: Vec<_> = states
        .map(|(index, state)| {
            json!({
                "shard": index,
                "backend": state.backend,
                "tick_age_secs": state.tick_age.map(|age| age.as_secs_f64()),
                "busy_ratio": state.busy_ratio,
                "counters": metrics.of_shard(index),
            })
        })
        .collect();
    Json(json!({
        "version": VERSION,
        "commit": COMMIT,
        "started_at": metrics.start_unix_secs(),
        "live": metrics.all_ticking(),
        "ready": metrics.all_bound() && !metrics.draining(),
        "draining": metrics.draining(),
        "listeners": admin.listeners,
        "counters": metrics.totals(),
        "shards": shards,
    }))
    .into_response()
}

/// Makes a call that may wait for shards, away from the control thread and with a deadline.
async fn call<T: Send + 'static>(
    admin: &Admin,
    work: impl FnOnce(&dyn Rendezvous) -> Result<T, AdminError> + Send + 'static,
) -> Result<T, AdminError> {
    let unavailable = |sentence: &str| AdminError::Unavailable(sentence.to_owned());
    let Ok(permit) = Arc::clone(&admin.calls).try_acquire_owned() else {
        return Err(unavailable(
            "Too many requests at once; ask again in a moment.",
        ));
    };
    let rendezvous = Arc::clone(&admin.rendezvous);
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(&*rendezvous)
    });
    match tokio::time::timeout(SHARDS_DEADLINE, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(unavailable("The request was given up inside the server.")),
        Err(_) => Err(unavailable("The shards did not answer in time; ask again.")),
    }
}

/// Lets a request to `/v1` through: with the token where there is one, and never on behalf of a web
/// page from elsewhere, because a browser on this host reaches loopback too.
async fn guard(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let token = admin.token.read().map_or(None, |token| token.clone());
    if comes_from_elsewhere(request.headers(), token.is_some()) {
        let sentence = "This request was made by a web page of another host.";
        return refusal(StatusCode::FORBIDDEN, "forbidden", sentence);
    }
    let shown = request.headers().get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match token {
        Some(token) if !shown.is_some_and(|shown| token.matches(shown)) => {
            let sentence = "Send the admin token as `Authorization: Bearer TOKEN`.";
            let mut response = refusal(StatusCode::UNAUTHORIZED, "unauthorized", sentence);
            let challenge = header::HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
            response
        }
        _ => next.run(request).await,
    }
}

/// A foreign `Origin`, or, when no token protects, a `Host` by name: a name of a stranger's can be
/// made to point at loopback (DNS rebinding).
fn comes_from_elsewhere(headers: &HeaderMap, has_token: bool) -> bool {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &header::HeaderValue| value.to_str().unwrap_or(""))
    };
    let host = text(header::HOST).unwrap_or("");
    if let Some(origin) = text(header::ORIGIN)
        && origin.split_once("://").map(|(_, authority)| authority) != Some(host)
    {
        return true;
    }
    let name = host.parse::<Authority>();
    let name = name.as_ref().map_or("", |authority| authority.host());
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    !has_token && name != "localhost" && bare.parse::<IpAddr>().is_err()
}

async fn no_store(mut response: Response) -> Response {
    let fixed = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in fixed {
        response
            .headers_mut()
            .insert(name, header::HeaderValue::from_static(value));
    }
    response
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let (status, word, sentence) = match self {
            AdminError::Invalid(sentence) => (StatusCode::BAD_REQUEST, "invalid", sentence),
            AdminError::NotFound(sentence) => (StatusCode::NOT_FOUND, "not_found", sentence),
            AdminError::Conflict(sentence) => (StatusCode::CONFLICT, "conflict", sentence),
            AdminError::TooLarge(sentence) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large", sentence)
            }
            AdminError::Unavailable(sentence) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", sentence)
            }
        };
        refusal(status, word, &sentence)
    }
}

fn refusal(status: StatusCode, word: &str, sentence: &str) -> Response {
    (status, Json(json!({ "error": word, "message": sentence }))).into_response()
}
