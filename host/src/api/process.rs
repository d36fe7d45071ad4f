//! Limits and usage of a host's process: types of `/v1/host`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Limits and usage of the host's process, as it sees them. Fields that are unlimited or unknown are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessInfo {
    /// Memory budget of the host (`limits.memory_bytes`), in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// The part of it for instances, running batches and native code, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_modules_bytes: Option<u64>,
    /// Their current use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_modules_used_bytes: Option<u64>,
    /// Memory that the process may use: its control group's limit, or the whole machine, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_available_bytes: Option<u64>,
    /// Memory in use by the process, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Most open files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files_max: Option<u64>,
    /// Most address space, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_space_max_bytes: Option<u64>,
}
