//! Sagas and their instances.

use super::each;
use crate::api;
use crate::sagas::{Saga, SagaGroup, SagaInstance};

impl From<Saga> for api::Saga {
    fn from(saga: Saga) -> Self {
        let Saga {
            name,
            waiting,
            ended,
            ignored,
        } = saga;
        Self {
            name,
            waiting: each(waiting),
            ended,
            ignored,
        }
    }
}

impl From<SagaGroup> for api::SagaGroup {
    fn from(group: SagaGroup) -> Self {
        let SagaGroup {
            status,
            step,
            instances,
            since,
        } = group;
        Self {
            status,
            step,
            instances,
            since,
        }
    }
}

impl From<SagaInstance> for api::SagaInstance {
    fn from(instance: SagaInstance) -> Self {
        let SagaInstance {
            saga,
            key,
            status,
            step,
            since,
            started,
            attempt,
            due,
            reason,
        } = instance;
        Self {
            saga,
            key,
            status,
            step,
            since,
            started,
            attempt,
            due,
            reason,
        }
    }
}
