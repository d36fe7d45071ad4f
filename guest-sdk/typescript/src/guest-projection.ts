/** What a projection exports to a host; only `foldstream build` imports it, for the component. */

import type { Payload } from "foldstream:module/state@0.1.0";
import { inboxOf, manifestOf, Running, type Load, type WireEvent } from "./guest";
import { Projection } from "./projection";

/** The functions that a component exports. */
export function exported(load: Load, migrates: boolean) {
  const running = new Running(load, migrates, {
    base: Projection,
    name: "projection",
    otherwise: 'a handler needs "foldstream": { "kind": "handler" } in package.json',
  });
  return {
    manifest: () => ({ kind: "projection", ...manifestOf(running) }),
    inbox: () => inboxOf(running),
    apply: (events: WireEvent[]) => running.apply(events),
    query: (name: string, args: Payload) => running.query(name, args),
    migrate: running.migrate.bind(running),
  };
}
