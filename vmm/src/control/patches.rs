//! The endpoints for patches.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{ApiError, PatchInfo, PatchList};
use super::query::Asked;
use super::refusal::Refusal;
use super::routes::{Api, INSPECT_LIMIT};
use crate::update::Deadline;

/// An endpoint that takes a body.
pub(super) const APPLY: &str = "/api/v1/patch.apply";

/// How long a request waits for a change before it is answered without one.
const CHANGE_LIMIT: Duration = Duration::from_secs(15);

/// All of them.
pub(super) fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(patch_apply))
        .routes(routes!(patch_rollback))
        .routes(routes!(patch_list))
}

/// How a patch is applied.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ApplyChoice {
    /// Whether a patch is taken that nobody has signed whose key the VMM trusts.
    #[serde(default)]
    unsigned: bool,
    /// For how many seconds it may be tried, 1 to 3600; 60 without it. Longer than that, nothing is changed.
    limit: Option<u64>,
}

fn deadline(seconds: Option<u64>) -> Result<Deadline, Refusal> {
    let Some(seconds) = seconds else { return Ok(Deadline::USUAL) };
    Deadline::seconds(seconds).ok_or_else(|| {
        let message = format!("a limit of {seconds} s is none");
        let next_step = "give 1 to 3600 seconds";
        Refusal::new(StatusCode::BAD_REQUEST, "bad_limit", message, next_step)
    })
}

/// Apply a patch to the kernel of the running guest
///
/// The body is a `.lup` file. It is checked before the answer; the rest goes on after it, and `patch.list` tells how.
#[utoipa::path(put, path = "/api/v1/patch.apply", tag = "patch", params(ApplyChoice),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 202, body = PatchInfo),
    (status = 409, description = "The machine or the patch is not in a state for it", body = ApiError),
    (status = 422, description = "The patch is not taken", body = ApiError),
))]
async fn patch_apply(
    State(api): State<Api>,
    Asked(ApplyChoice { unsigned, limit }): Asked<ApplyChoice>,
    file: Bytes,
) -> Result<(StatusCode, Json<PatchInfo>), Refusal> {
    let limit = deadline(limit)?;
    let info = api.act_within(INSPECT_LIMIT, move |machine| machine.apply(&file, unsigned, limit)).await?;
    Ok((StatusCode::ACCEPTED, Json(info)))
}

/// Which patch is rolled back.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct RollBackChoice {
    /// Its number.
    id: u32,
    /// For how many seconds it may be tried, 1 to 3600; 60 without it. Longer than that, it stays applied.
    limit: Option<u64>,
}

/// Roll a patch back
///
/// `patch.list` tells how it goes on. One that is not applied yet is taken back.
#[utoipa::path(put, path = "/api/v1/patch.rollback", tag = "patch", params(RollBackChoice), responses(
    (status = 202, body = PatchInfo),
    (status = 404, description = "There is no such patch", body = ApiError),
    (status = 409, description = "It is not applied", body = ApiError),
))]
async fn patch_rollback(
    State(api): State<Api>,
    Asked(RollBackChoice { id, limit }): Asked<RollBackChoice>,
) -> Result<(StatusCode, Json<PatchInfo>), Refusal> {
    let limit = deadline(limit)?;
    let info = api.act_within(INSPECT_LIMIT, move |machine| machine.roll_back(id, limit)).await?;
    Ok((StatusCode::ACCEPTED, Json(info)))
}

/// Whether a change is waited for.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ListChoice {
    /// The revision that is known: the answer comes with the next one, or after 15 s.
    after: Option<u64>,
}

/// Every patch: what it is doing, and who is in the way
#[utoipa::path(get, path = "/api/v1/patch.list", tag = "patch", params(ListChoice), responses(
    (status = 200, body = PatchList),
))]
async fn patch_list(
    State(api): State<Api>,
    Asked(ListChoice { after }): Asked<ListChoice>,
) -> Result<Json<PatchList>, Refusal> {
    let Some(after) = after else { return api.look(|machine| machine.patches()).await.map(Json) };
    let mut changes = api.machine.board().changes();
    // Without a change in time what is known is the answer, and if nobody is left to change anything, too.
    let _ = timeout(CHANGE_LIMIT, changes.wait_for(|revision| *revision > after)).await;
    Ok(Json(api.machine.board().list()))
}
