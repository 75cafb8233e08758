//! Watched pages. Addresses are text, as JSON's numbers end at 2^53.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which pages are watched, and what was seen of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrapReport {
    /// How accesses are carried out: `second-view`, with all other vCPUs running on, or `hold-all`.
    pub way: String,
    /// The pages, by the guest physical address of their first byte.
    pub pages: Vec<String>,
    /// What has happened since the guest was started.
    pub counts: BTreeMap<String, u64>,
    /// Pages that are no longer watched although nobody asked for that; the last ones.
    pub lost: Vec<LostPage>,
}

/// A page that is no longer watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LostPage {
    /// Where it is.
    pub page: String,
    /// Why.
    pub why: String,
}
