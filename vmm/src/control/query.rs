//! What is asked for in particular, behind a path.

use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;

/// A query that says what it may. Another one is refused like everything else, in JSON.
#[derive(Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Query::try_from_uri(&parts.uri).map(|Query(query)| Self(query)).map_err(|error| {
            let next_step = "GET /api/v1/openapi.json lists what each endpoint can be asked";
            Refusal::new(StatusCode::BAD_REQUEST, "bad_query", error.body_text(), next_step)
        })
    }
}
