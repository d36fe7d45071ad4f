//! A saga with a mistake: it books a room and then a flight, and cannot read the answer about the room
//! if that has the new form. The guest `booking-fixed` can. The guest `booking-strict` keeps more of a
//! trip, and cannot read trips that other code keeps.

use std::time::Duration;

use foldstream_sdk::prelude::*;
use foldstream_sdk::saga::{Call, Compensation, RetryPolicy, Saga, Sagas, Step};

/// How long the room may take. Short, so that it passes while the answer is parked.
const ROOM: Duration = Duration::from_millis(1_500);
const FLIGHT: Duration = Duration::from_secs(3_600);

/// A trip.
#[derive(Clone, Serialize, Deserialize)]
struct Trip {
    #[serde(default)]
    room: String,
    #[cfg(feature = "strict")]
    beds: u64,
}

/// The answer about the room.
#[derive(Deserialize)]
struct Booked {
    room: Option<String>,
    /// The new form.
    number: Option<u64>,
}

fn saga() -> Saga<Trip> {
    let room = Step::new("room")
        .command(|call| Ok(Message::to(format!("room.{}.book", call.key()))))
        .succeeds_on("room.*.booked")
        .fails_on("room.*.refused")
        .timeout(ROOM)
        .retry(RetryPolicy::attempts(3))
        .on_success(|trip: &mut Trip, event| {
            let booked: Booked = event.json()?;
            trip.room = match (booked.room, booked.number) {
                (Some(room), _) => room,
                (None, Some(number)) if cfg!(feature = "fixed") => number.to_string(),
                _ => return Err(Failure::reject("the answer has no room")),
            };
            Ok(())
        })
        .compensation(
            Compensation::new(|call| Ok(Message::to(format!("room.{}.cancel", call.key()))))
                .succeeds_on("room.*.cancelled"),
        );
    let flight = Step::new("flight")
        .command(|call: &Call<'_, Trip>| {
            Message::to(format!("flight.{}.book", call.key())).json(&call.data().room)
        })
        .succeeds_on("flight.*.booked")
        .fails_on("flight.*.refused")
        .timeout(FLIGHT);
    Saga::new("booking")
        .starts_on("trips.*.wanted", |event| event.json())
        .step(room)
        .step(flight)
        .keep_ended_forever()
        .on_completed(|call: &Call<'_, Trip>| {
            Message::to(format!("trips.{}.booked", call.key())).json(&call.data().room)
        })
}

struct Booking {
    sagas: Sagas<Trip>,
}

impl Handler for Booking {
    fn manifest() -> Manifest<Self> {
        Manifest::new("booking")
            .saga(&saga())
            .publishes([
                "room.*.book",
                "room.*.cancel",
                "flight.*.book",
                "trips.*.booked",
            ])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            sagas: Sagas::open(state, saga()),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        self.sagas.handle(event, effects)?;
        Ok(())
    }

    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        self.sagas.on_timer(timer, effects)?;
        Ok(())
    }
}

handler!(Booking);
