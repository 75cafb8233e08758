//! The OpenAPI document, made of the routes themselves.

use utoipa::OpenApi;

use super::routes;

#[derive(OpenApi)]
#[openapi(info(
    title = "lucos control API",
    description = "Controls one virtual machine over the Unix socket that `lucos-vmm --api-socket PATH` makes. \
                   Only the socket's owner can open it. Only `patch.apply` and `vm.arm` have a body; each connection \
                   serves one request. A request that is not carried out is answered with an `ApiError`."
))]
pub(super) struct Description;

/// The description of every endpoint.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes::described().into_openapi()
}

/// The same as the text that `docs/openapi.json` holds.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    openapi().to_pretty_json().map(|text| text + "\n")
}
