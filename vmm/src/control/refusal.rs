//! What a client is told when a request is not carried out.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use update_server::watch::NotWatched;

use super::machine::ControlError;
use super::model::{ApiError, MachineState};

/// A refusal: the status for programs, the rest for people.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    status: StatusCode,
    error: ApiError,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>, next_step: &str) -> Self {
        let error = ApiError { code: code.into(), message: message.into(), next_step: next_step.into() };
        Self { status, error }
    }

    pub(super) fn no_such_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_such_endpoint",
            format!("there is no endpoint {path}"),
            "GET /api/v1/openapi.json lists the endpoints",
        )
    }

    pub(super) fn wrong_method(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "wrong_method",
            format!("{path} does not take {method}"),
            "reading takes GET, acting takes PUT; GET /api/v1/openapi.json says which",
        )
    }

    pub(super) fn too_slow(seconds: u64) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timed_out",
            format!("the machine did not answer within {seconds} s; what was asked may still happen"),
            "look at the state with `lucos info` (GET /api/v1/vm.info) before you ask again",
        )
    }

    pub(super) fn broke() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed",
            "the VMM failed to carry the request out; this is a bug in the VMM",
            "look at the VMM's log and report it",
        )
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        let (status, code, next_step) = match error {
            ControlError::WrongState {
                needed: MachineState::Paused, found: MachineState::Running, ..
            } => {
                (StatusCode::CONFLICT, "wrong_state", "pause it first: `lucos pause` (PUT /api/v1/vm.pause)")
            }
            ControlError::WrongState { found: MachineState::Paused, .. } => (
                StatusCode::CONFLICT,
                "wrong_state",
                "resume it first: `lucos resume` (PUT /api/v1/vm.resume)",
            ),
            ControlError::WrongState { found: MachineState::Stopping, .. } => {
                (StatusCode::CONFLICT, "wrong_state", "start the VM again; this one is about to end")
            }
            ControlError::WrongState { .. } => (
                StatusCode::CONFLICT,
                "wrong_state",
                "wait until `lucos info` (GET /api/v1/vm.info) names the needed state, then ask again",
            ),
            ControlError::TimedOut { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, "timed_out", "ask again; if it stays so, look at the VMM's log")
            }
            ControlError::NobodyListens => (
                StatusCode::CONFLICT,
                "nobody_listens",
                "ask again when the guest has booted, or end the VMM with `lucos shutdown` (PUT /api/v1/vmm.shutdown)",
            ),
            ControlError::UnknownKernel { .. } => (
                StatusCode::CONFLICT,
                "unknown_kernel",
                "ask again when the guest has booted the kernel that the VMM was started with",
            ),
            ControlError::NotWatched(why) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "not_watched", instead_of_watching(&why))
            }
            ControlError::PatchRefused { code, .. } => {
                let next_step = match code {
                    "not_trusted" => {
                        "get a patch that one of the VMM's keys has signed, or take it as it is with `lucos apply --unsigned` \
                         (PUT /api/v1/patch.apply?unsigned=true)"
                    }
                    "bad_patch" => "look at the file with `lucos-patch inspect`, and get it again",
                    "other_kernel" => "get the patch that was made for this kernel",
                    // The message names what is in the way: it may be the patch, and it may be the guest.
                    "not_applicable" => "mend what the message names, or get a patch made for this kernel",
                    "guest_refuses" => "change the guest's settings, or boot it with a fixed kernel",
                    _ => "`lucos list` (GET /api/v1/patch.list) says what each patch is doing",
                };
                let conflict = matches!(code, "already_applied" | "other_patch" | "not_applied" | "too_many");
                let status = if conflict { StatusCode::CONFLICT } else { StatusCode::UNPROCESSABLE_ENTITY };
                (status, code, next_step)
            }
            ControlError::NoPatch { .. } => (
                StatusCode::NOT_FOUND,
                "no_such_patch",
                "`lucos list` (GET /api/v1/patch.list) has the numbers of all",
            ),
            ControlError::Host { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "failed", "look at the VMM's log and report it")
            }
        };
        Self::new(status, code, message, next_step)
    }
}

/// What to do where a page cannot be watched.
fn instead_of_watching(why: &NotWatched) -> &'static str {
    match why {
        NotWatched::NoPage(_) | NotWatched::Table(_) | NotWatched::Hypervisor { .. } => {
            "nothing has changed; name other pages"
        }
        NotWatched::NotFirst(_) => "give the address of the page's first byte",
        NotWatched::TooMany { .. } => {
            "name fewer pages, or have the others given up: `lucos disarm` (PUT /api/v1/vm.disarm)"
        }
        NotWatched::Unable(_) => "mend what the message names; `lucos-vmm doctor` says what this host can",
        NotWatched::Host(_) => {
            "mend what the message names, or report it; `lucos traps` (GET /api/v1/vm.traps) has what is watched"
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.error)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_steps_name_the_verb_before_the_request() {
        let state = |found, needed| ControlError::WrongState { operation: "vm.pause", found, needed };
        let patch = |code| ControlError::PatchRefused { code, why: "it is so".to_owned() };
        let refusals = [
            (Refusal::too_slow(1), "lucos info"),
            (state(MachineState::Running, MachineState::Paused).into(), "lucos pause"),
            (state(MachineState::Paused, MachineState::Running).into(), "lucos resume"),
            (state(MachineState::Starting, MachineState::Running).into(), "lucos info"),
            (ControlError::NobodyListens.into(), "lucos shutdown"),
            (patch("not_trusted").into(), "lucos apply --unsigned"),
            (patch("already_applied").into(), "lucos list"),
            (ControlError::from(NotWatched::TooMany { asked: 2, most: 1 }).into(), "lucos disarm"),
            (ControlError::from(NotWatched::Host(String::new())).into(), "lucos traps"),
            (ControlError::NoPatch { id: 1 }.into(), "lucos list"),
        ];
        for (refusal, verb) in refusals {
            let step = refusal.error.next_step;
            let (before, _) = step.split_once("/api/v1/").unwrap_or_else(|| panic!("no request in {step}"));
            assert!(before.contains(&format!("`{verb}` (")), "{step}");
        }
    }
}
