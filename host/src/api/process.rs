//! What the process of a host may use: shapes of `/v1/host`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the process of the host may use, and uses, as it sees it itself. What is not limited, or not known, is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessInfo {
    /// Memory that the host shares out (`limits.memory_bytes`), in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// The part of it that instances, running batches and native code may take, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_modules_bytes: Option<u64>,
    /// What they take now, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_modules_used_bytes: Option<u64>,
    /// Memory that the process may use: its control group's limit, or all of the machine, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_available_bytes: Option<u64>,
    /// Memory that the process holds, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Most files that it may have open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files_max: Option<u64>,
    /// Most address space that it may have, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_space_max_bytes: Option<u64>,
}
