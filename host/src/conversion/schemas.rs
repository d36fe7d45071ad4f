//! Schemas of events, as modules carry them.

use std::sync::Arc;

use crate::api;
use crate::schemas::{EventSchema, by_event};

impl From<(String, Arc<[EventSchema]>)> for api::ModuleSchemas {
    fn from((digest, carried): (String, Arc<[EventSchema]>)) -> Self {
        let all = by_event(&carried).into_values().flatten();
        let schemas = all.map(|schema| {
            let EventSchema {
                event,
                version,
                direction,
                schema,
            } = schema.clone();
            api::EventSchema {
                event,
                version,
                direction,
                schema,
            }
        });
        Self {
            digest,
            schemas: schemas.collect(),
        }
    }
}

impl From<api::EventSchema> for EventSchema {
    fn from(value: api::EventSchema) -> Self {
        let api::EventSchema {
            event,
            version,
            direction,
            schema,
        } = value;
        Self {
            event,
            version,
            direction,
            schema,
        }
    }
}
