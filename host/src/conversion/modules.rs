//! Modules, as the catalogue stores them.

use super::each;
use crate::api;
use crate::state::catalogue::{
    ErrorPolicy, EventVersion, InboxSettings, ModuleInfo, ModuleLimits, QueryDescription,
};

impl From<ModuleInfo> for api::ModuleInfo {
    fn from(value: ModuleInfo) -> Self {
        let ModuleInfo {
            digest,
            size,
            kind,
            name,
            description,
            subjects,
            wants_headers,
            key_rule,
            state_version,
            error_policy,
            limits,
            queries,
            imports,
            migrates,
            publishes,
            inbox,
            sets_timers,
            events,
        } = value;
        Self {
            digest,
            size,
            kind,
            name,
            description,
            subjects,
            wants_headers,
            key_rule,
            state_version,
            error_policy: error_policy.into(),
            limits: limits.into(),
            queries: each(queries),
            imports,
            migrates,
            publishes,
            inbox: inbox.map(Into::into),
            sets_timers,
            events: each(events),
        }
    }
}

impl From<ErrorPolicy> for api::ErrorPolicy {
    fn from(value: ErrorPolicy) -> Self {
        let ErrorPolicy {
            attempts,
            initial_backoff_ms,
            max_backoff_ms,
        } = value;
        Self {
            attempts,
            initial_backoff_ms,
            max_backoff_ms,
        }
    }
}

impl From<ModuleLimits> for api::ModuleLimits {
    fn from(value: ModuleLimits) -> Self {
        let ModuleLimits {
            memory_bytes,
            deadline_ms,
            batch_events,
            state_bytes,
        } = value;
        Self {
            memory_bytes,
            deadline_ms,
            batch_events,
            state_bytes,
        }
    }
}

impl From<QueryDescription> for api::QueryDescription {
    fn from(value: QueryDescription) -> Self {
        let QueryDescription { name, description } = value;
        Self { name, description }
    }
}

impl From<EventVersion> for api::EventVersion {
    fn from(value: EventVersion) -> Self {
        let EventVersion {
            event,
            version,
            direction,
        } = value;
        Self {
            event,
            version,
            direction,
        }
    }
}

impl From<InboxSettings> for api::Inbox {
    fn from(value: InboxSettings) -> Self {
        let InboxSettings {
            id,
            window_ms,
            ids_max,
        } = value;
        Self {
            id,
            window_ms,
            ids_max,
        }
    }
}
