//! The endpoints for watched pages.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use update_server::addr::Gpa;
use update_server::watch::Access;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{ApiError, ArmRequest, BadPages, TrapReport};
use super::refusal::Refusal;
use super::routes::{Api, INSPECT_LIMIT};

/// An endpoint that takes a body.
pub(super) const ARM: &str = "/api/v1/vm.arm";
/// What it takes.
pub(super) const ARM_BODY: &str = "send JSON such as {\"pages\": [\"0x1c05000\"], \"busiest\": 0, \"all\": false} as the body, with 30,000 pages at most";

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
fn read(body: &[u8]) -> Result<Arming, Refusal> {
    let refuse = |code, message: String, next_step| {
        Err(Refusal::new(StatusCode::BAD_REQUEST, code, message, next_step))
    };
    let request: ArmRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => {
            return refuse("bad_body", format!("the body does not say what to watch: {error}"), ARM_BODY);
        }
    };
    let pages = match request.addresses() {
        Ok(pages) => pages,
        Err(error) => {
            let next_step = match error {
                BadPages::None => "name pages, or say how many of the busiest",
                BadPages::TooMany { .. } => "name fewer pages",
                BadPages::NoAddress { .. } => "give hexadecimal numbers, such as 0x1c05000",
            };
            let code = if matches!(error, BadPages::TooMany { .. }) { "too_many_pages" } else { "bad_page" };
            return refuse(code, error.to_string(), next_step);
        }
    };
    let access = if request.all { Access::All } else { Access::Writes };
    Ok(Arming { pages, busiest: request.busiest, access })
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
    let arming = read(&body)?;
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

/// Watch no page any more
#[utoipa::path(put, path = "/api/v1/vm.disarm", tag = "traps", responses(
    (status = 200, body = TrapReport),
    (status = 409, description = "There is no guest", body = ApiError),
))]
async fn vm_disarm(State(api): State<Api>) -> Result<Json<TrapReport>, Refusal> {
    api.act(|machine| machine.disarm()).await.map(Json)
}
