/** Fulfils orders by orchestration: one saga asks payment, stock and shipping, one after the other, and
 * undoes what was done if one of them can't do its part. The module `examples/saga-orchestrated` in
 * TypeScript: it publishes, sets and stores the same.
 *
 * Its time-outs are short so that a demonstration shows them; real ones are minutes or days. */

import {
  type Effects,
  type Event,
  type Fired,
  Handler,
  type HandlerManifest,
  optional,
  record,
  seconds,
  text,
  type TypeOf,
  u64,
} from "@foldstream/sdk";
import { type Call, Saga, Sagas } from "@foldstream/sdk/saga";

/** How long each attempt waits for its answer. */
const TIMEOUT = seconds(3);

/** An order, and what its saga keeps of it: the number of the payment, once there is one. */
const Order = record({ cents: u64, item: text, card: text, address: text, payment: optional(text) });
type Order = TypeOf<typeof Order>;

/** An answer of payment. */
const Charged = record({ payment: text });

/** A command to a participant. Its id is the same for each attempt, and for the command that undoes
 * it. */
const command = (to: string, what: string) => (call: Call<Order>) => ({
  subject: `${to}.${call.key}.${what}`,
  data: { id: call.id, ...call.data },
});

/** The end of an order. */
const ended = (how: string) => (call: Call<Order>) => ({
  subject: `orders.${call.key}.${how}`,
  data: call.reason === "" ? {} : { reason: call.reason },
});

const twice = { attempts: 2, firstUs: seconds(0.5), longestUs: TIMEOUT };
const undo = { attempts: 3, firstUs: seconds(0.2), longestUs: TIMEOUT };

/** The saga: what happens to an order, and what undoes it. */
const fulfilment = new Saga({
  name: "order-fulfilment",
  data: Order,
  startsOn: "orders.*.placed",
  steps: [
    {
      name: "payment",
      command: command("payment", "charge"),
      succeedsOn: "payment.*.charged",
      failsOn: "payment.*.declined",
      retriesOn: "payment.*.unavailable",
      onSuccess: (order, event) => {
        order.payment = event.json(Charged).payment;
      },
      timeoutUs: TIMEOUT,
      retry: twice,
      compensation: {
        command: command("payment", "refund"),
        succeedsOn: "payment.*.refunded",
        failsOn: "payment.*.refund-failed",
        timeoutUs: TIMEOUT,
        retry: undo,
      },
    },
    {
      name: "stock",
      command: command("stock", "reserve"),
      succeedsOn: "stock.*.reserved",
      failsOn: "stock.*.out-of-stock",
      timeoutUs: TIMEOUT,
      retry: twice,
      compensation: {
        command: command("stock", "release"),
        succeedsOn: "stock.*.released",
        timeoutUs: TIMEOUT,
        retry: undo,
      },
    },
    {
      // Nothing brings goods back. So nobody gives up on an answer, and a customer can't cancel any more.
      name: "shipping",
      pivot: true,
      command: command("shipping", "send"),
      succeedsOn: "shipping.*.sent",
      failsOn: "shipping.*.refused",
      timeoutUs: TIMEOUT,
      retry: { attempts: Infinity, firstUs: seconds(0.5), longestUs: TIMEOUT },
    },
  ],
  cancelsOn: "orders.*.cancelled",
  resumesOn: "orders.*.resume",
  skipsOn: "orders.*.skip",
  onCompleted: ended("fulfilled"),
  onCompensated: ended("rejected"),
  onStuck: ended("stuck"),
});

/** The coordinator. */
export default class Fulfilment extends Handler {
  static override manifest: HandlerManifest = {
    name: "order-fulfilment",
    description: "Asks payment, stock and shipping, and undoes what was done if one can't",
    subjects: fulfilment.subjects,
    publishes: [
      "payment.*.charge",
      "payment.*.refund",
      "stock.*.reserve",
      "stock.*.release",
      "shipping.*.send",
      "orders.*.fulfilled",
      "orders.*.rejected",
      "orders.*.stuck",
    ],
    timers: true,
    key: { subjectToken: 2 },
  };

  sagas = new Sagas(fulfilment);

  handle(event: Event, effects: Effects): void {
    this.sagas.handle(event, effects);
  }

  override onTimer(timer: Fired, effects: Effects): void {
    this.sagas.onTimer(timer, effects);
  }
}
