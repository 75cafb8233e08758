//! The endpoints.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http_body_util::LengthLimitError;
use lucos_lup::limits::FILE_BYTES;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::description::{self, Description};
use super::machine::{ControlError, MachineControl};
use super::model::{
    Accepted, ApiError, ArmRequest, Counters, ModuleReport, PauseReport, ResumeReport, StackReport,
    SymbolReport, TaskReport, TextReport, VersionInfo, VmInfo,
};
use super::patches;
use super::query::Asked;
use super::refusal::Refusal;
use super::traps;
use crate::config::MachineSpec;

/// How long the machine may take for one request. A pause takes milliseconds; this only bounds a hang.
const MACHINE_LIMIT: Duration = Duration::from_secs(20);

/// How long it may take to look into the guest's kernel: the first time, its image is unpacked and read.
pub(super) const INSPECT_LIMIT: Duration = Duration::from_mins(2);

/// Most endpoints take no body; of theirs this much is read to say so.
const BODY_MAX: usize = 4096;

/// How long a client may take to send it.
const BODY_LIMIT: Duration = Duration::from_secs(5);

/// How long a client may take to send a patch, which has 20 MiB at most.
const PATCH_LIMIT: Duration = Duration::from_secs(30);

/// The machine behind the endpoints.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) machine: Arc<dyn MachineControl>,
    /// One request at a time changes the machine. The others wait here and not in a thread each, so that
    /// there are always threads left to answer those who only look.
    acting: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(machine: Arc<dyn MachineControl>) -> Self {
        Self { machine, acting: Arc::new(Semaphore::new(1)) }
    }

    /// Looks at the machine, off the server's thread.
    pub(super) async fn look<T, F>(&self, look: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&dyn MachineControl) -> T + Send + 'static,
    {
        let machine = Arc::clone(&self.machine);
        let look = async { spawn_blocking(move || look(&*machine)).await.map_err(|_| Refusal::broke()) };
        bounded(MACHINE_LIMIT, look).await
    }

    /// Changes the machine, off the server's thread, after those who asked before.
    pub(super) async fn act<T, F>(&self, act: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&dyn MachineControl) -> Result<T, ControlError> + Send + 'static,
    {
        self.act_within(MACHINE_LIMIT, act).await
    }

    /// The same for what may take longer.
    pub(super) async fn act_within<T, F>(&self, limit: Duration, act: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&dyn MachineControl) -> Result<T, ControlError> + Send + 'static,
    {
        let machine = Arc::clone(&self.machine);
        let acting = Arc::clone(&self.acting);
        bounded(limit, async {
            let permit = acting.acquire_owned().await.map_err(|_| Refusal::broke())?;
            // The permit goes along: it is held until the machine is done, even if the client has left.
            let done = spawn_blocking(move || (act(&*machine), permit)).await;
            Ok(done.map_err(|_| Refusal::broke())?.0?)
        })
        .await
    }
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(Refusal::too_slow(limit.as_secs())))
}

/// Every endpoint with its description. The only place where one is added.
pub(super) fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(vmm_version))
        .routes(routes!(vmm_shutdown))
        .routes(routes!(vm_info))
        .routes(routes!(vm_config))
        .routes(routes!(vm_counters))
        .routes(routes!(vm_pause))
        .routes(routes!(vm_resume))
        .routes(routes!(vm_power_button))
        .routes(routes!(vm_stacks))
        .routes(routes!(vm_tasks))
        .routes(routes!(vm_symbols))
        .routes(routes!(vm_modules))
        .routes(routes!(vm_text_check))
        .merge(patches::described())
        .merge(traps::described())
        .routes(routes!(openapi_json))
}

/// The service that a connection talks to.
pub(super) fn router(api: Api) -> Router {
    let (router, _) = described().split_for_parts();
    router
        .fallback(|uri: Uri| async move { Refusal::no_such_path(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            Refusal::wrong_method(method.as_str(), uri.path())
        })
        .layer(middleware::from_fn(with_its_body))
        .layer(DefaultBodyLimit::max(FILE_BYTES))
        .with_state(api)
}

/// Lets requests through that have no body, or the one that they should have.
async fn with_its_body(request: Request, next: Next) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let (most, limit, next_step) = match parts.uri.path() {
        patches::APPLY => (FILE_BYTES, PATCH_LIMIT, "send a .lup file as the body"),
        traps::ARM => (ArmRequest::BYTES_MAX, BODY_LIMIT, traps::ARM_BODY),
        traps::DISARM => (ArmRequest::BYTES_MAX, BODY_LIMIT, traps::DISARM_BODY),
        _ => (BODY_MAX, BODY_LIMIT, "send the request with an empty body"),
    };
    let takes_one = matches!(parts.uri.path(), patches::APPLY | traps::ARM | traps::DISARM);
    let refuse = |status, code, message: &str| Err(Refusal::new(status, code, message, next_step));
    match timeout(limit, axum::body::to_bytes(body, most)).await {
        Err(_) => refuse(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not arrive in time"),
        Ok(Err(error)) if is_too_long(&error) => {
            let message = format!("{} takes no body of more than {most} bytes", parts.uri.path());
            refuse(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", &message)
        }
        Ok(Err(_)) => refuse(StatusCode::BAD_REQUEST, "bad_body", "the body could not be read"),
        Ok(Ok(bytes)) if !bytes.is_empty() && !takes_one => {
            refuse(StatusCode::BAD_REQUEST, "unexpected_body", "this request takes no body")
        }
        Ok(Ok(bytes)) => {
            tracing::debug!(method = %parts.method, path = parts.uri.path(), "control request");
            Ok(next.run(Request::from_parts(parts, bytes.into())).await)
        }
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<LengthLimitError>)
}

/// Which VMM this is
#[utoipa::path(get, path = "/api/v1/vmm.version", tag = "vmm", responses((status = 200, body = VersionInfo)))]
async fn vmm_version() -> Json<VersionInfo> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Json(VersionInfo { version, api: "v1".to_owned(), pid: std::process::id() })
}

/// End the VMM now
///
/// The guest is not asked: for it this is a power cut. What it flushed to its disks is kept. Any state will do.
#[utoipa::path(put, path = "/api/v1/vmm.shutdown", tag = "vmm", responses((status = 202, body = Accepted)))]
async fn vmm_shutdown(State(api): State<Api>) -> (StatusCode, Json<Accepted>) {
    // On this thread, because it waits for nothing and must work when everything else hangs.
    api.machine.shutdown();
    (StatusCode::ACCEPTED, Json(Accepted { message: "the VMM ends now".to_owned() }))
}

/// What the machine is, and what it is doing
#[utoipa::path(get, path = "/api/v1/vm.info", tag = "vm", responses((status = 200, body = VmInfo)))]
async fn vm_info(State(api): State<Api>) -> Result<Json<VmInfo>, Refusal> {
    let (state, spec) = api.look(|machine| (machine.state(), machine.config())).await?;
    Ok(Json(VmInfo { state, kernel: spec.kernel, cpus: spec.cpus, memory: spec.memory }))
}

/// The configuration that the machine was built from
///
/// Written as TOML, it is what `--config FILE` reads.
#[utoipa::path(get, path = "/api/v1/vm.config", tag = "vm", responses((status = 200, body = MachineSpec)))]
async fn vm_config(State(api): State<Api>) -> Result<Json<MachineSpec>, Refusal> {
    api.look(|machine| machine.config()).await.map(Json)
}

/// What the machine has counted since it started
#[utoipa::path(get, path = "/api/v1/vm.counters", tag = "vm", responses((status = 200, body = Counters)))]
async fn vm_counters(State(api): State<Api>) -> Result<Json<Counters>, Refusal> {
    api.look(|machine| machine.counters()).await.map(Json)
}

/// Stop every vCPU and every device's writes into guest memory
///
/// Answered when nothing moves any more. The machine must be running.
#[utoipa::path(put, path = "/api/v1/vm.pause", tag = "vm", responses(
    (status = 200, body = PauseReport),
    (status = 409, description = "The machine is not running", body = ApiError),
    (status = 504, description = "Something did not stop in time; the machine runs on", body = ApiError),
))]
async fn vm_pause(State(api): State<Api>) -> Result<Json<PauseReport>, Refusal> {
    api.act(|machine| machine.pause()).await.map(Json)
}

/// Let a paused machine go on
///
/// The machine must be paused.
#[utoipa::path(put, path = "/api/v1/vm.resume", tag = "vm", responses(
    (status = 200, body = ResumeReport),
    (status = 409, description = "The machine is not paused", body = ApiError),
))]
async fn vm_resume(State(api): State<Api>) -> Result<Json<ResumeReport>, Refusal> {
    api.act(|machine| machine.resume()).await.map(Json)
}

/// Press the ACPI power button
///
/// The guest decides what it does; a stock Debian powers itself off. The machine must be running.
#[utoipa::path(put, path = "/api/v1/vm.power-button", tag = "vm", responses(
    (status = 202, body = Accepted),
    (status = 409, description = "The machine is not running, or its guest does not listen", body = ApiError),
))]
async fn vm_power_button(State(api): State<Api>) -> Result<impl IntoResponse, Refusal> {
    api.act(|machine| machine.power_button()).await?;
    let message = "the power button is pressed; the guest decides what it does".to_owned();
    Ok((StatusCode::ACCEPTED, Json(Accepted { message })))
}

/// How stacks are looked at.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct StackChoice {
    /// Whether every stack is walked anew while the guest stands still, and doubted if it is not as it was known to be.
    #[serde(default)]
    verify: bool,
}

/// Every kernel stack of the guest
///
/// Read from outside, most of it while the guest runs; it stands still only for what has run meanwhile, and takes no part.
/// The machine must be running or paused.
#[utoipa::path(get, path = "/api/v1/vm.stacks", tag = "kernel", params(StackChoice), responses(
    (status = 200, body = StackReport),
    (status = 409, description = "The machine is neither, or its kernel is not the one it was started with", body = ApiError),
))]
async fn vm_stacks(
    State(api): State<Api>,
    Asked(StackChoice { verify }): Asked<StackChoice>,
) -> Result<Json<StackReport>, Refusal> {
    api.act_within(INSPECT_LIMIT, move |machine| machine.stacks(verify)).await.map(Json)
}

/// Every task of the guest
///
/// As `vm.stacks`, without frames: most of it is read while the guest runs; it stands still only for what has run meanwhile, and
/// takes no part. The machine must be running or paused.
#[utoipa::path(get, path = "/api/v1/vm.tasks", tag = "kernel", responses(
    (status = 200, body = TaskReport),
    (status = 409, description = "The machine is neither, or its kernel is not the one it was started with", body = ApiError),
))]
async fn vm_tasks(State(api): State<Api>) -> Result<Json<TaskReport>, Refusal> {
    api.act_within(INSPECT_LIMIT, |machine| machine.tasks()).await.map(Json)
}

/// Which symbols are asked for.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct SymbolFilter {
    /// A name, or an address in hexadecimal with 0x before it. All symbols without it.
    filter: Option<String>,
}

/// Symbols of the running kernel, where KASLR has put them
///
/// The machine must be running or paused.
#[utoipa::path(get, path = "/api/v1/vm.symbols", tag = "kernel", params(SymbolFilter), responses(
    (status = 200, body = SymbolReport),
    (status = 409, description = "The machine is neither, or its kernel is not the one it was started with", body = ApiError),
))]
async fn vm_symbols(
    State(api): State<Api>,
    Asked(SymbolFilter { filter }): Asked<SymbolFilter>,
) -> Result<Json<SymbolReport>, Refusal> {
    api.act_within(INSPECT_LIMIT, move |machine| machine.symbols(filter.as_deref())).await.map(Json)
}

/// Which modules are asked for.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ModuleChoice {
    /// The name of one; its sites are then listed. All modules without it.
    name: Option<String>,
}

/// The kernel's modules, and the places of their text that may change, as the guest says
///
/// The machine must be running or paused.
#[utoipa::path(get, path = "/api/v1/vm.modules", tag = "kernel", params(ModuleChoice), responses(
    (status = 200, body = ModuleReport),
    (status = 409, description = "The machine is neither, or its kernel is not the one it was started with", body = ApiError),
))]
async fn vm_modules(
    State(api): State<Api>,
    Asked(ModuleChoice { name }): Asked<ModuleChoice>,
) -> Result<Json<ModuleReport>, Refusal> {
    api.act_within(INSPECT_LIMIT, move |machine| machine.modules(name.as_deref())).await.map(Json)
}

/// The kernel's text, held against the image: what differs, and by right of which table
///
/// The machine must be running or paused.
#[utoipa::path(get, path = "/api/v1/vm.text-check", tag = "kernel", responses(
    (status = 200, body = TextReport),
    (status = 409, description = "The machine is neither, or its kernel is not the one it was started with", body = ApiError),
))]
async fn vm_text_check(State(api): State<Api>) -> Result<Json<TextReport>, Refusal> {
    api.act_within(INSPECT_LIMIT, |machine| machine.text_check()).await.map(Json)
}

/// This description
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "vmm", responses(
    (status = 200, description = "The OpenAPI description of this API", body = Object),
))]
async fn openapi_json() -> Json<utoipa::openapi::OpenApi> {
    Json(description::openapi())
}
