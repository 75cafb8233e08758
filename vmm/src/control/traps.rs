//! The endpoints for watched pages.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use update_server::addr::Gpa;
use update_server::watch::Access;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{ApiError, TrapReport};
use super::query::Asked;
use super::refusal::Refusal;
use super::routes::{Api, INSPECT_LIMIT};

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

/// Which pages are watched.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ArmChoice {
    /// Guest physical addresses of first bytes of pages, in hexadecimal, with commas between them.
    pages: Option<String>,
    /// How many of the pages that the guest writes to most; half a second is taken to find them.
    #[serde(default)]
    busiest: usize,
    /// Whether reads are trapped, too.
    #[serde(default)]
    all: bool,
}

impl ArmChoice {
    fn read(&self) -> Result<Arming, Refusal> {
        let bad = |message: String, next_step| {
            Refusal::new(StatusCode::BAD_REQUEST, "bad_page", message, next_step)
        };
        let mut pages = Vec::new();
        for text in self.pages.iter().flat_map(|pages| pages.split(',')) {
            let digits = text.trim().trim_start_matches("0x");
            let page = u64::from_str_radix(digits, 16).map_err(|_| {
                bad(format!("{text:?} is no address"), "give hexadecimal numbers, such as 0x1c05000")
            })?;
            pages.push(Gpa(page));
        }
        if pages.is_empty() && self.busiest == 0 {
            return Err(bad("no page is named".to_owned(), "name pages, or say how many of the busiest"));
        }
        let access = if self.all { Access::All } else { Access::Writes };
        Ok(Arming { pages, busiest: self.busiest, access })
    }
}

/// Watch pages of the guest
///
/// All that are named, or none. The machine must be running; it runs on.
#[utoipa::path(put, path = "/api/v1/vm.arm", tag = "traps", params(ArmChoice), responses(
    (status = 200, body = TrapReport),
    (status = 409, description = "The machine is not running", body = ApiError),
    (status = 422, description = "A page cannot be watched", body = ApiError),
))]
async fn vm_arm(
    State(api): State<Api>,
    Asked(choice): Asked<ArmChoice>,
) -> Result<Json<TrapReport>, Refusal> {
    let arming = choice.read()?;
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
