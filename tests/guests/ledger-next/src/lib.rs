//! The next version of the guest `ledger`: it stores the same facts in another shape, and migrates
//! those of version 1.
//!
//! What it folds from a stream and what it makes of version 1's state are the same entries. Written
//! with the SDK, so that a migration through the SDK is tried on a real component.

use foldstream_sdk::prelude::*;
use serde::{Deserialize, Serialize};

/// What is true of all events so far.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Head {
    /// Number of events.
    events: u64,
    /// Hash over all of them; version 1 has it in hexadecimal.
    chain: u64,
    /// The last sequence.
    last: u64,
}

/// What is true of one customer's events. Version 1 has it under `customer`, with other names.
#[derive(Default, Serialize, Deserialize)]
struct Account {
    orders: u64,
    balance: i64,
    last: u64,
}

/// Version 1's `head`.
#[derive(Deserialize)]
struct OldHead {
    count: u64,
    chain: String,
    last: u64,
}

/// Version 1's `customer/NAME`.
#[derive(Deserialize)]
struct OldCustomer {
    count: u64,
    amount: i64,
    last: u64,
}

#[derive(Deserialize)]
struct Order {
    order: String,
    amount: i64,
}

#[derive(Serialize)]
struct Pair {
    left: u64,
    right: u64,
}

#[derive(Default, Serialize)]
struct Audit {
    customers: u64,
    count: u64,
    amount: i64,
    head: Head,
}

struct Ledger {
    head: Value<Head>,
    accounts: Table<String, Account>,
    pair: Table<String, u64>,
}

impl Projection for Ledger {
    fn manifest() -> Manifest<Self> {
        Manifest::new("ledger")
            .description("Proves which events were applied, in which order")
            .subjects(["orders.>"])
            .key(KeyRule::SubjectToken(2))
            .state_version(2)
            .query(
                "pair",
                "The two keys that are always written together",
                |ledger: &Self, (): ()| {
                    Ok(Pair {
                        left: ledger.pair.get_or_default("left")?,
                        right: ledger.pair.get_or_default("right")?,
                    })
                },
            )
            .query(
                "audit",
                "Sums over all customers, next to what the head says",
                |ledger: &Self, (): ()| ledger.audit(),
            )
    }

    fn open(state: &State) -> Self {
        Self {
            head: state.value("head"),
            accounts: state.table("account"),
            pair: state.table("pair"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let order: Order = event.json()?;
        let sequence = event.sequence();
        self.head.update(|head| {
            if sequence <= head.last {
                return Err(Failure::reject(format_args!(
                    "event {sequence} arrived behind {}",
                    head.last
                )));
            }
            *head = Head {
                events: head.events + 1,
                chain: link(head.chain, event, &order),
                last: sequence,
            };
            Ok(())
        })??;
        self.accounts.update(event.token(2)?, |account| {
            account.orders += 1;
            account.balance += order.amount;
            account.last = sequence;
        })?;
        self.pair.put("left", sequence)?;
        Ok(self.pair.put("right", sequence)?)
    }
}

impl Migrate for Ledger {
    fn migrate(
        from_version: u32,
        old: &OldEntry<'_>,
        new: &mut NewEntries,
    ) -> Result<(), MigrateError> {
        if from_version != 1 {
            return Err(MigrateError::unknown_version(from_version));
        }
        // Version 1 was written without the SDK and did not escape names.
        if let Some(name) = old.key().strip_prefix("customer/") {
            let OldCustomer {
                count,
                amount,
                last,
            } = old.json()?;
            return new.put::<String>(
                "account",
                name,
                &Account {
                    orders: count,
                    balance: amount,
                    last,
                },
            );
        }
        if let Some(OldHead { count, chain, last }) = old.of_value("head")? {
            let chain = u64::from_str_radix(&chain, 16)?;
            return new.put_value(
                "head",
                &Head {
                    events: count,
                    chain,
                    last,
                },
            );
        }
        // `pair` has kept its form.
        new.keep(old);
        Ok(())
    }
}

impl Ledger {
    fn audit(&self) -> Result<Audit, QueryError> {
        let mut audit = Audit {
            head: self.head.get_or_default()?,
            ..Audit::default()
        };
        for (_, account) in self.accounts.scan().entries()? {
            audit.customers += 1;
            audit.count += account.orders;
            audit.amount += account.balance;
        }
        Ok(audit)
    }
}

/// FNV-1a over the chain so far and one event, as in version 1.
fn link(chain: u64, event: &Event<'_>, order: &Order) -> u64 {
    let fact = format!(
        "{chain:x} {} {} {} {}",
        event.sequence(),
        event.subject(),
        order.order,
        order.amount
    );
    fact.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

projection!(Ledger, migrate);
