//! The endpoints for watched pages.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use update_server::addr::Gpa;
use update_server::watch::Access;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{ApiError, ArmRequest, BadPages, DisarmRequest, TrapReport};
use super::refusal::Refusal;
use super::routes::{Api, INSPECT_LIMIT};

/// An endpoint that takes a body.
pub(super) const ARM: &str = "/api/v1/vm.arm";
/// What it takes.
pub(super) const ARM_BODY: &str = "send JSON such as {\"pages\": [\"0x1c05000\"], \"busiest\": 0, \"all\": false} as the body, with 30,000 pages at most";

/// An endpoint that may be given a body.
pub(super) const DISARM: &str = "/api/v1/vm.disarm";
/// Which one.
pub(super) const DISARM_BODY: &str = "send JSON such as {\"pages\": [\"0x1c05000\"]} as the body, with 30,000 pages at most, or no body to watch none any more";

/// All of them.
pub(super) fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(vm_arm)).routes(routes!(vm_traps)).routes(routes!(vm_disarm))
}

/// Pages that are to be watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arming {
    /// These.
    pub pages: Vec<Gpa>,
    /// And as many of those that the guest writes to most.
    pub busiest: usize,
    /// What of them.
    pub access: Access,
}

/// What a request asks for.
fn arming(body: &[u8]) -> Result<Arming, Refusal> {
    let request: ArmRequest = read(body, "what to watch", ARM_BODY)?;
    let pages =
        request.addresses().map_err(|error| refused(&error, "name pages, or say how many of the busiest"))?;
    let access = if request.all { Access::All } else { Access::Writes };
    Ok(Arming { pages, busiest: request.busiest, access })
}

/// Which pages a request gives up; `None` if it means all.
fn given_up(body: &[u8]) -> Result<Option<Vec<Gpa>>, Refusal> {
    if body.is_empty() {
        return Ok(None);
    }
    let Some(request) = read::<Option<DisarmRequest>>(body, "which pages to give up", DISARM_BODY)? else {
        return Ok(None);
    };
    let pages =
        request.addresses().map_err(|error| refused(&error, "name pages, or send no body to give all up"))?;
    Ok(Some(pages))
}

fn read<T: DeserializeOwned>(body: &[u8], what: &str, next_step: &'static str) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body does not say {what}: {error}");
        Refusal::new(StatusCode::BAD_REQUEST, "bad_body", message, next_step)
    })
}

fn refused(error: &BadPages, without_any: &'static str) -> Refusal {
    let (code, next_step) = match error {
        BadPages::None => ("bad_page", without_any),
        BadPages::TooMany { .. } => ("too_many_pages", "name fewer pages"),
        BadPages::NoAddress { .. } => ("bad_page", "give hexadecimal numbers, such as 0x1c05000"),
    };
    Refusal::new(StatusCode::BAD_REQUEST, code, error.to_string(), next_step)
}

/// Watch pages of the guest
///
/// All that are named, or none. The machine must be running; it runs on.
#[utoipa::path(put, path = "/api/v1/vm.arm", tag = "traps", request_body = ArmRequest, responses(
    (status = 200, body = TrapReport),
    (status = 400, description = "The body does not name pages, or more than 30,000", body = ApiError),
    (status = 409, description = "The machine is not running", body = ApiError),
    (status = 413, description = "The body is longer than 30,000 addresses are", body = ApiError),
    (status = 422, description = "A page cannot be watched", body = ApiError),
))]
async fn vm_arm(State(api): State<Api>, body: Bytes) -> Result<Json<TrapReport>, Refusal> {
    let arming = arming(&body)?;
    drop(body);
    api.act_within(INSPECT_LIMIT, move |machine| machine.arm(&arming)).await.map(Json)
}

/// Which pages are watched, and what was seen of them
#[utoipa::path(get, path = "/api/v1/vm.traps", tag = "traps", responses(
    (status = 200, body = TrapReport),
    (status = 409, description = "There is no guest", body = ApiError),
))]
async fn vm_traps(State(api): State<Api>) -> Result<Json<TrapReport>, Refusal> {
    api.act(|machine| machine.traps()).await.map(Json)
}

/// Watch pages of the guest no longer
///
/// Those that the body names; without a body, no page is watched any more.
#[utoipa::path(put, path = "/api/v1/vm.disarm", tag = "traps", request_body = Option<DisarmRequest>, responses(
    (status = 200, body = TrapReport),
    (status = 400, description = "The body does not name pages, or more than 30,000", body = ApiError),
    (status = 409, description = "There is no guest", body = ApiError),
    (status = 413, description = "The body is longer than 30,000 addresses are", body = ApiError),
    (status = 422, description = "An address is no page's first byte, and nothing has changed; or the host cannot give pages up, which are watched still", body = ApiError),
))]
async fn vm_disarm(State(api): State<Api>, body: Bytes) -> Result<Json<TrapReport>, Refusal> {
    let pages = given_up(&body)?;
    drop(body);
    api.act(move |machine| machine.disarm(pages.as_deref())).await.map(Json)
}
