//! The host itself, and its audit log.

use crate::api;
use crate::host::Info;
use crate::state::catalogue::Audit;

impl From<Info> for api::HostInfo {
    fn from(value: Info) -> Self {
        let Info {
            version,
            contract,
            started_at,
            deployments,
            process,
            faults,
        } = value;
        Self {
            version: version.to_owned(),
            contract: contract.to_owned(),
            started_at: started_at.to_string(),
            deployments: deployments as u64,
            process: process.into(),
            faults,
        }
    }
}

impl From<Audit> for api::AuditEntry {
    fn from(value: Audit) -> Self {
        let Audit {
            at,
            action,
            deployment,
            detail,
            actor,
            peer,
        } = value;
        Self {
            at,
            action,
            deployment,
            detail,
            actor,
            peer,
        }
    }
}
