/** The host's functions, as a component imports them; the contract is in `wit/`. */

declare module "foldstream:module/state@0.1.0" {
  export type Payload = { tag: "text"; val: string } | { tag: "bytes"; val: Uint8Array };
  export interface Page {
    entries: { key: string; value: Payload }[];
    more: boolean;
  }
  export function get(key: string): Payload | null | undefined;
  export function putMany(entries: [string, Payload | undefined][]): void;
  export function scan(
    selection: { tag: "range"; val: { start?: string; end?: string } },
    after: string | undefined,
    direction: "forwards" | "backwards",
    limit: number,
  ): Page;
}

declare module "foldstream:module/log@0.1.0" {
  export function write(level: "debug" | "info" | "warn" | "error", message: string): void;
}

declare module "foldstream:module/outbox@0.1.0" {
  import type { Payload } from "foldstream:module/state@0.1.0";
  export interface Message {
    cause: number;
    subject: string;
    kind: string | undefined;
    headers: [string, string][];
    data: Payload;
    key: string | undefined;
  }
  export interface Delivery {
    notBeforeNs: number | undefined;
    timeToLiveS: number | undefined;
    expectedLast: { subject?: string; sequence: number } | undefined;
  }
  export function publishWith(messages: [Message, Delivery][]): void;
}

declare module "foldstream:module/timers@0.1.0" {
  export function set(cause: number, timers: { name: string; atNs: number; key: string | undefined }[]): void;
  export function cancel(cause: number, names: string[]): void;
}
