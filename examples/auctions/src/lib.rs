//! Highest bids, average prices and sellers' totals, on the auction model of NEXMark.
//!
//! Events come under `auctions.<id>.<type>`: a `person` joins, an `auction`
//! opens, a `bid` is made. Nothing says that an auction ends: it expires, and
//! the first event at or after that time settles it. Time is that of the
//! events, so a rebuild settles the same auctions in the same order.

use foldstream_sdk::prelude::*;

#[derive(Clone, Serialize, Deserialize)]
struct Person {
    name: String,
    city: String,
}

#[derive(Deserialize)]
struct Opened {
    item: String,
    category: u32,
    seller: u64,
    reserve_cents: u64,
    expires: Timestamp,
}

#[derive(Deserialize)]
struct BidMade {
    bidder: u64,
    price_cents: u64,
}

events! {
    /// What happens in the auction house.
    enum AuctionEvent {
        "person" => Person(Person),
        "auction" => Opened(Opened),
        "bid" => Bid(BidMade),
        _ => Other,
    }
}

/// The current state of an auction.
#[derive(Clone, Serialize, Deserialize)]
struct Auction {
    item: String,
    category: u32,
    seller: u64,
    reserve_cents: u64,
    expires: Timestamp,
    bids: u64,
    highest: Option<Bid>,
    settled: bool,
}

#[derive(Clone, Serialize, Deserialize)]
struct Bid {
    bidder: u64,
    price_cents: u64,
    time: Timestamp,
}

/// What was sold in a category, or by a seller.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Sales {
    /// Auctions that ended, sold or not.
    ended: u64,
    /// Auctions that ended with a bid of at least the reserve.
    sold: u64,
    /// What they went for.
    total_cents: u64,
}

struct Auctions {
    /// `person/<id>`
    people: Table<u64, Person>,
    /// `auction/<id>`
    auctions: Table<u64, Auction>,
    /// `open/<expires>/<auction>`: those that are to be settled, the next one first
    open: Table<(Timestamp, u64), ()>,
    /// `next-expiry`: the time of the first of them, so that most events need not look
    next_expiry: Value<Option<Timestamp>>,
    /// `category/<category>`
    categories: Table<u32, Sales>,
    /// `seller/<person>`
    sellers: Table<u64, Sales>,
}

impl Projection for Auctions {
    fn manifest() -> Manifest<Self> {
        Manifest::new("auctions")
            .description("Highest bids, average prices and sellers' totals")
            .subjects(["auctions.*.person", "auctions.*.auction", "auctions.*.bid"])
            .query(
                "highest-bid",
                "The highest bid of an auction: {\"auction\": 1001}",
                Self::highest_bid,
            )
            .query(
                "average-price",
                "What sold auctions went for on average, of one category or of all: {\"category\": \
                 3}",
                Self::average_price,
            )
            .query(
                "seller",
                "What a seller has sold so far: {\"seller\": 7}",
                Self::seller,
            )
            .query(
                "sellers",
                "All sellers, a page at a time: {\"after\": 7, \"limit\": 20}",
                Self::sellers,
            )
    }

    fn open(state: &State) -> Self {
        Self {
            people: state.table("person"),
            auctions: state.table("auction"),
            open: state.table("open"),
            next_expiry: state.value("next-expiry"),
            categories: state.table("category"),
            sellers: state.table("seller"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        self.settle_expired(event.time())?;
        let id: u64 = event.token(2)?.parse()?;
        match event.decode()? {
            AuctionEvent::Person(person) => Ok(self.people.put(id, person)?),
            AuctionEvent::Opened(opened) => self.opened(id, opened),
            AuctionEvent::Bid(bid) => self.bid(id, bid, event.time()),
            AuctionEvent::Other => Ok(()),
        }
    }
}

impl Auctions {
    fn opened(&mut self, id: u64, opened: Opened) -> Result<(), Failure> {
        let Opened {
            item,
            category,
            seller,
            reserve_cents,
            expires,
        } = opened;
        let auction = Auction {
            item,
            category,
            seller,
            reserve_cents,
            expires,
            bids: 0,
            highest: None,
            settled: false,
        };
        self.auctions.put(id, auction)?;
        self.open.put((expires, id), ())?;
        self.next_expiry
            .update(|next| *next = Some(next.map_or(expires, |next| next.min(expires))))?;
        Ok(())
    }

    fn bid(&mut self, id: u64, bid: BidMade, time: Timestamp) -> Result<(), Failure> {
        let BidMade {
            bidder,
            price_cents,
        } = bid;
        self.auctions.edit(id, |auction| {
            let Some(auction) = auction.as_mut().filter(|auction| !auction.settled) else {
                // Too late, or for an auction that is not here: it does not count.
                return;
            };
            auction.bids += 1;
            // Of equal bids the first one wins.
            if auction
                .highest
                .as_ref()
                .is_none_or(|highest| price_cents > highest.price_cents)
            {
                auction.highest = Some(Bid {
                    bidder,
                    price_cents,
                    time,
                });
            }
        })?;
        Ok(())
    }

    /// Settles what has expired by now, in the order of expiry.
    fn settle_expired(&mut self, now: Timestamp) -> Result<(), Failure> {
        if self
            .next_expiry
            .get_or_default()?
            .is_none_or(|next| next > now)
        {
            return Ok(());
        }
        for ((expires, id), ()) in self.open.scan().range(..=(now, u64::MAX)).entries()? {
            self.open.delete((expires, id))?;
            self.settle(id)?;
        }
        let next = self
            .open
            .first(1)?
            .first()
            .map(|((expires, _), ())| *expires);
        Ok(self.next_expiry.put(next)?)
    }

    fn settle(&mut self, id: u64) -> Result<(), Failure> {
        let settled = self.auctions.edit(id, |auction| {
            let auction = auction.as_mut()?;
            auction.settled = true;
            Some((auction.category, auction.seller, auction.price()))
        })?;
        if let Some((category, seller, price)) = settled {
            self.categories.update(category, |sales| sales.add(price))?;
            self.sellers.update(seller, |sales| sales.add(price))?;
        }
        Ok(())
    }

    fn highest_bid(&self, arguments: AuctionArguments) -> Result<HighestBid, QueryError> {
        let auction = self
            .auctions
            .get(arguments.auction)?
            .ok_or(QueryError::NotFound)?;
        let highest = auction.highest.ok_or(QueryError::NotFound)?;
        let bidder = self.people.get(highest.bidder)?.map(|person| person.name);
        Ok(HighestBid {
            item: auction.item,
            price_cents: highest.price_cents,
            bidder,
            settled: auction.settled,
        })
    }

    fn average_price(&self, arguments: CategoryArguments) -> Result<Vec<AveragePrice>, QueryError> {
        let categories = match arguments.category {
            Some(category) => vec![(
                category,
                self.categories.get(category)?.ok_or(QueryError::NotFound)?,
            )],
            None => self.categories.first(100)?,
        };
        let average = |(category, sales): (u32, Sales)| AveragePrice {
            category,
            sold: sales.sold,
            average_cents: sales.total_cents.checked_div(sales.sold),
        };
        Ok(categories.into_iter().map(average).collect())
    }

    fn seller(&self, arguments: SellerArguments) -> Result<Seller, QueryError> {
        let sales = self
            .sellers
            .get(arguments.seller)?
            .ok_or(QueryError::NotFound)?;
        self.describe(arguments.seller, sales)
    }

    fn sellers(&self, arguments: PageArguments) -> Result<Vec<Seller>, QueryError> {
        let mut page = self.sellers.scan().take(arguments.limit.min(100));
        if let Some(seller) = arguments.after {
            page = page.after(seller);
        }
        let sellers = page.entries()?;
        sellers
            .into_iter()
            .map(|(seller, sales)| self.describe(seller, sales))
            .collect()
    }

    fn describe(&self, seller: u64, sales: Sales) -> Result<Seller, QueryError> {
        let name = self.people.get(seller)?.map(|person| person.name);
        Ok(Seller {
            seller,
            name,
            sales,
        })
    }
}

impl Auction {
    /// What it went for; nothing below the reserve.
    fn price(&self) -> Option<u64> {
        self.highest
            .as_ref()
            .map(|bid| bid.price_cents)
            .filter(|price| *price >= self.reserve_cents)
    }
}

impl Sales {
    fn add(&mut self, price: Option<u64>) {
        self.ended += 1;
        if let Some(price_cents) = price {
            self.sold += 1;
            self.total_cents += price_cents;
        }
    }
}

#[derive(Deserialize)]
struct AuctionArguments {
    auction: u64,
}

#[derive(Deserialize)]
struct CategoryArguments {
    category: Option<u32>,
}

#[derive(Deserialize)]
struct SellerArguments {
    seller: u64,
}

#[derive(Deserialize)]
struct PageArguments {
    after: Option<u64>,
    #[serde(default = "twenty")]
    limit: usize,
}

fn twenty() -> usize {
    20
}

#[derive(Serialize)]
struct HighestBid {
    item: String,
    price_cents: u64,
    bidder: Option<String>,
    settled: bool,
}

#[derive(Serialize)]
struct AveragePrice {
    category: u32,
    sold: u64,
    average_cents: Option<u64>,
}

#[derive(Serialize)]
struct Seller {
    seller: u64,
    name: Option<String>,
    #[serde(flatten)]
    sales: Sales,
}

projection!(Auctions);

#[cfg(test)]
mod tests;
