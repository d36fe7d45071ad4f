/** Has paid orders shipped, and reminds of those that are not paid: a small handler, to begin from. */

import {
  type Effects,
  type Event,
  type Fired,
  Handler,
  type HandlerManifest,
  NotFound,
  bool,
  minutes,
  query,
  record,
  text,
  u64,
} from "@foldstream/sdk";

/** What is kept of an order. */
const Order = record({ paid: bool, reminders: u64 });

export default class Starter extends Handler {
  static override manifest: HandlerManifest = {
    name: "starter",
    description: "Has paid orders shipped, and reminds of those that are not paid",
    subjects: ["orders.*.*"],
    publishes: ["tasks.*.*"],
    timers: true,
    key: { subjectToken: 2 },
  };

  // Everything it keeps, in tables. Entries of this one have keys such as `order/42`.
  orders = this.table("order", text, Order);

  /** Handles one event, such as `orders.42.paid`. */
  handle(event: Event, effects: Effects): void {
    const id = event.token(2);
    const timer = `payment/${id}`;
    switch (event.kind) {
      case "placed":
        this.orders.edit(id);
        effects.setTimer(timer, event.timeUs + minutes(30));
        break;
      case "paid": {
        const order = this.orders.edit(id);
        if (order.paid) return;
        order.paid = true;
        effects.cancelTimer(timer);
        effects.publish(`tasks.${id}.ship`, { order: id });
      }
    }
  }

  /** Half an hour has passed, and the order is not paid. */
  override onTimer(timer: Fired, effects: Effects): void {
    const id = timer.part(2);
    this.orders.edit(id).reminders += 1;
    effects.publish(`tasks.${id}.remind`, { order: id });
  }

  override queries = {
    order: query('How far an order is, by its name: "42"', text, (id) => {
      const order = this.orders.get(id);
      if (order === undefined) throw new NotFound();
      return order;
    }),
  };
}
