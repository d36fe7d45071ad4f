//! Limits and usage of the host's process.

use super::each;
use crate::api;
use crate::memory::{PartUsage, ProcessUsage};

impl From<ProcessUsage> for api::ProcessInfo {
    fn from(usage: ProcessUsage) -> Self {
        let ProcessUsage {
            memory_total_bytes,
            memory_modules_bytes,
            memory_modules_used_bytes,
            memory_parts,
            memory_available_bytes,
            resident_bytes,
            open_files_max,
            address_space_max_bytes,
        } = usage;
        Self {
            memory_total_bytes,
            memory_modules_bytes,
            memory_modules_used_bytes,
            memory_parts: each(memory_parts),
            memory_available_bytes,
            resident_bytes,
            open_files_max,
            address_space_max_bytes,
        }
    }
}

impl From<PartUsage> for api::MemoryPart {
    fn from(usage: PartUsage) -> Self {
        let PartUsage {
            name,
            used_bytes,
            limit_bytes,
            refused,
        } = usage;
        Self {
            name: name.to_owned(),
            used_bytes,
            limit_bytes,
            refused,
        }
    }
}
