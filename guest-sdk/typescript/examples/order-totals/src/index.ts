/** What each customer ordered, in all and per day, and who ordered most.
 *
 * Events come under `orders.<customer>.<type>`. An order is placed with its total; it may be paid and
 * shipped; it may be cancelled, or returned in part. The same module in Rust is in
 * `examples/order-totals`; both store the same bytes. */

import {
  type Event,
  type Manifest,
  NotFound,
  Projection,
  type TypeOf,
  date,
  nothing,
  query,
  record,
  text,
  u64,
  withDefault,
} from "@foldstream/sdk";

const Placed = record({ order: text, total_cents: u64 });
/** Of most events only the order matters here; what else they carry is ignored. */
const OfOrder = record({ order: text });
const Returned = record({ order: text, refund_cents: u64 });

/** What is kept of a customer, and of each day of a customer: orders placed and not cancelled, their
 * worth less what was returned, what was paid whatever came later, and orders shipped. */
const Totals = record({ orders: u64, total_cents: u64, paid_cents: u64, shipped: u64 });

/** What is kept of an order, as later events do not repeat it. */
const Order = record({ day: date, total_cents: u64 });
type Order = TypeOf<typeof Order>;

export default class OrderTotals extends Projection {
  static override manifest: Manifest = {
    name: "order-totals",
    description: "What each customer ordered, in all and per day, and who ordered most",
    subjects: ["orders.>"],
    key: { subjectToken: 2 },
  };

  /** `order/<customer>/<order>` */
  orders = this.table("order", [text, text], Order);
  /** `customer/<customer>` */
  customers = this.table("customer", text, Totals);
  /** `day/<customer>/<day>`, by the day on which the order was placed */
  days = this.table("day", [text, date], Totals);
  /** `rank/<total>/<customer>`: the keys are the ranking, from the smallest total up */
  ranking = this.table("rank", [u64, text], nothing);

  apply(event: Event): void {
    const customer = event.token(2);
    switch (event.kind) {
      case "placed": {
        const { order, total_cents } = event.json(Placed);
        const placed = { day: event.date, total_cents };
        this.orders.set([customer, order], placed);
        this.change(customer, placed, { orders: 1, total_cents });
        break;
      }
      case "paid":
        this.changeOf(customer, event.json(OfOrder).order, ({ total_cents }) => ({ paid_cents: total_cents }));
        break;
      case "shipped":
        this.changeOf(customer, event.json(OfOrder).order, () => ({ shipped: 1 }));
        break;
      case "cancelled": {
        const { order } = event.json(OfOrder);
        this.changeOf(customer, order, ({ total_cents }) => ({ orders: -1, total_cents: -total_cents }));
        // Whatever comes later of this order is not counted.
        this.orders.delete([customer, order]);
        break;
      }
      case "returned": {
        const { order, refund_cents } = event.json(Returned);
        this.changeOf(customer, order, () => ({ total_cents: -refund_cents }));
        break;
      }
    }
  }

  /** Changes the totals for an order that was placed before. */
  private changeOf(customer: string, order: string, change: (order: Order) => Change): void {
    const placed = this.orders.get([customer, order]);
    if (placed === undefined) {
      // Cancelled before, or the stream was cut behind it: there is nothing to count.
      console.warn(`customer ${customer} has no order ${order}`);
    } else {
      this.change(customer, placed, change(placed));
    }
  }

  /** Changes the totals of a customer and of the order's day, and moves the customer in the
   * ranking. */
  private change(customer: string, { day }: Order, change: Change): void {
    const totals = this.customers.edit(customer);
    const before = totals.total_cents;
    for (const changed of [this.days.edit([customer, day]), totals]) {
      changed.orders = Math.max(changed.orders + (change.orders ?? 0), 0);
      changed.total_cents = Math.max(changed.total_cents + (change.total_cents ?? 0), 0);
      changed.paid_cents += change.paid_cents ?? 0;
      changed.shipped += change.shipped ?? 0;
    }
    if (totals.total_cents !== before) {
      this.ranking.delete([before, customer]);
      this.ranking.set([totals.total_cents, customer], null);
    }
  }

  override queries = {
    customer: query('The totals of a customer: {"customer": "ada"}', record({ customer: text }), ({ customer }) => {
      const totals = this.customers.get(customer);
      if (totals === undefined) throw new NotFound();
      return totals;
    }),
    days: query(
      'A customer\'s totals per day: {"customer": "ada", "from": "2026-10-01", "to": "2026-10-30"}',
      record({ customer: text, from: date, to: date }),
      ({ customer, from, to }) => {
        const days = this.days.scan({ under: customer, start: from, through: to });
        return [...days].map(([[, day], totals]) => [day, totals]);
      },
    ),
    "top-customers": query('Who ordered most: {"limit": 3}', record({ limit: withDefault(u64, 10) }), ({ limit }) => {
      const last = this.ranking.scan({ backwards: true, limit: Math.min(limit, 100) });
      return [...last].map(([[total_cents, customer]]) => ({ customer, total_cents }));
    }),
  };
}

/** How much each number of some totals changes. */
type Change = Partial<TypeOf<typeof Totals>>;
