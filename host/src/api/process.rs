//! Limits and usage of a host's process: types of `/v1/host`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Limits and usage of the host's process, as it sees them. Fields that are unlimited or unknown
/// are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessInfo {
    /// Memory budget of the host (`limits.memory_bytes`), in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// The part of it that is allocated on demand, such as to instances, running batches, native
    /// code and requests, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_modules_bytes: Option<u64>,
    /// Their current use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_modules_used_bytes: Option<u64>,
    /// Usage of each part of the budget; empty if no host runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_parts: Vec<MemoryPart>,
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

/// A part of the memory that a host shares out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryPart {
    /// `memtables`, `read-ahead`, `caches`; or `folds`, `queries`, `code`, `requests`, `watches`,
    /// which take as they need.
    pub name: String,
    /// What it takes now, in bytes; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// The most that it may take, in bytes.
    pub limit_bytes: u64,
    /// How often more was refused since the host started.
    pub refused: u64,
}
