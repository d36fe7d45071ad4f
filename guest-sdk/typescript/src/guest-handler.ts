/** What a handler exports to a host; only `foldstream build` imports it, for the component. */

import { publishWith } from "foldstream:module/outbox@0.1.0";
import type { Payload } from "foldstream:module/state@0.1.0";
import { cancel, set } from "foldstream:module/timers@0.1.0";
import type { Outbox } from "./effects";
import { inboxOf, manifestOf, microseconds, payloadOf, Running, type Load, type WireEvent } from "./guest";
import { Handler } from "./handler";
import { publishesOf } from "./manifest";
import { Fired } from "./timers";

/** A timer that fires, as the host passes it. */
interface WireFired {
  name: string;
  atNs: number;
  firedNs: number;
  sequence: number;
  key: string | null | undefined;
}

/** The host. A time in nanoseconds is a number of 53 bits, so the nearest of 256: what comes back is
 * the microsecond that was given. */
const outbox: Outbox = {
  publish(cause, messages) {
    publishWith(
      messages.map(({ subject, type, headers, data, key, notBeforeUs, timeToLiveS, expectedLast }) => [
        {
          cause,
          subject,
          kind: type,
          headers,
          data: payloadOf(data),
          key,
        },
        { notBeforeNs: nanoseconds(notBeforeUs), timeToLiveS, expectedLast },
      ]),
    );
  },
  changeTimers(cause, changes) {
    // In order: a timer may be set again after it was cancelled.
    for (const change of changes) {
      if ("cancel" in change) cancel(cause, [change.cancel]);
      else set(cause, [{ name: change.set.name, atNs: nanoseconds(change.set.atUs), key: change.set.key }]);
    }
  },
};

/** The functions that a component exports. */
export function exported(load: Load, migrates: boolean) {
  const running = new Running(load, migrates, {
    base: Handler,
    name: "handler",
    otherwise: 'a projection needs no "kind" of "foldstream" in package.json',
    outbox,
  });
  return {
    manifest: () => ({
      ...manifestOf(running),
      publishes: publishesOf(running.manifest),
      setsTimers: running.manifest.timers ?? false,
    }),
    inbox: () => inboxOf(running),
    handle: (events: WireEvent[]) => running.apply(events),
    onTimer: (timers: WireFired[]) =>
      running.fire(
        timers.map(
          ({ name, atNs, firedNs, sequence, key }) =>
            new Fired(name, microseconds(atNs), microseconds(firedNs), sequence, key ?? undefined),
        ),
      ),
    query: (name: string, args: Payload) => running.query(name, args),
    migrate: running.migrate.bind(running),
  };
}

function nanoseconds(us: number): number;
function nanoseconds(us: number | undefined): number | undefined;
function nanoseconds(us: number | undefined): number | undefined {
  return us === undefined ? undefined : us * 1_000;
}
