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
