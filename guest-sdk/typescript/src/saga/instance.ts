/** What is stored of an instance of a saga. Its form is described in `docs/sagas.md`, so that hosts
 * and SDKs of other languages agree about it. */

import { bool, list, oneOf, record, text, timestamp, u32, u64, withDefault, type Type } from "../types";

/** The version of the stored form. */
export const FORMAT = 1;
/** Most notes in the history of an instance; older ones are dropped and counted. */
const NOTES_MAX = 32;
/** Longest text of a note or a reason, in characters. */
const TEXT_CHARACTERS_MAX = 200;

/** How far an instance of a saga is: its steps are being carried out; what was done is being undone;
 * it cannot continue without an operator; all steps are done; all that was done is undone. */
export type Status = "running" | "compensating" | "stuck" | "completed" | "compensated";

const FATES = ["waiting", "done", "in-doubt", "failed", "undone"] as const;
/** What became of a step: it is the current step; it was done; it may have been done, and is undone
 * like one that was; it was not done; it was done, or perhaps, and is undone. */
export type Fate = (typeof FATES)[number];

/** An instance of a saga, as it is stored. Times are texts in RFC 3339 with nine decimals. */
export interface Instance<D> {
  format: number;
  status: Status;
  /** The step that it carries out or undoes, or at which it is stuck; none after its end. */
  step: string | undefined;
  /** Since when it has had this status in this step. */
  since: string;
  started: string;
  /** The latest time that it met, because streams may have times that go back. */
  updated: string;
  /** Which attempt of the current command it is, counted from 1. */
  attempt: number;
  /** What it waits for: the answer to its command; the next attempt; an operator, or its removal. */
  wait: "answer" | "retry" | "nothing";
  /** Whether the current step is being undone. */
  undoing: boolean | undefined;
  /** When its timer fires. */
  due: string | undefined;
  /** Why it compensates or is stuck. */
  reason: string | undefined;
  /** The reason before it got stuck. */
  reason_before: string | undefined;
  /** The steps that were begun, in order. */
  steps: { step: string; fate: Fate }[];
  /** Steps without a command whose event came before their turn. */
  early: string[] | undefined;
  /** Steps without a command whose failure came before their turn. */
  early_failures: { step: string; why: string }[] | undefined;
  history: { at: string; what: string }[];
  history_dropped: number | undefined;
  /** What it keeps. */
  data: D;
}

/** The type of instances: fields in the order of the stored form. */
export function instanceType<D>(data: Type<D>): Type<Instance<D>> {
  return record({
    format: u32,
    status: oneOf("running", "compensating", "stuck", "completed", "compensated"),
    step: unless(text, () => false),
    since: timestamp,
    started: timestamp,
    updated: timestamp,
    attempt: withDefault(u32, 0),
    wait: oneOf("answer", "retry", "nothing"),
    undoing: unless(bool, (is) => !is),
    due: unless(timestamp, () => false),
    reason: unless(text, (reason) => reason === ""),
    reason_before: unless(text, (reason) => reason === ""),
    steps: withDefault(list(record({ step: text, fate: oneOf(...FATES) })), []),
    early: unless(list(text), (steps) => steps.length === 0),
    early_failures: unless(list(record({ step: text, why: text })), (failures) => failures.length === 0),
    history: withDefault(list(record({ at: timestamp, what: text })), []),
    history_dropped: unless(u64, (count) => count === 0),
    data,
  });
}

/** A field that is left out if it is empty. */
function unless<T>(inner: Type<T>, isEmpty: (value: T) => boolean): Type<T | undefined> {
  return {
    changes: inner.changes,
    absent: () => undefined,
    check(value) {
      const checked = value === null || value === undefined ? undefined : inner.check(value);
      return checked === undefined || isEmpty(checked) ? undefined : checked;
    },
  };
}

/** An instance that has done nothing yet. */
export function begun<D>(data: D, now: string): Instance<D> {
  return {
    format: FORMAT,
    status: "running",
    step: undefined,
    since: now,
    started: now,
    updated: now,
    attempt: 0,
    wait: "nothing",
    undoing: undefined,
    due: undefined,
    reason: undefined,
    reason_before: undefined,
    steps: [],
    early: undefined,
    early_failures: undefined,
    history: [],
    history_dropped: undefined,
    data,
  };
}

/** Whether nothing more happens. */
export function hasEnded(status: Status): boolean {
  return status === "completed" || status === "compensated";
}

export function fateOf<D>({ steps }: Instance<D>, step: string): Fate | undefined {
  return steps.find((record) => record.step === step)?.fate;
}

export function setFate<D>({ steps }: Instance<D>, step: string, fate: Fate): void {
  const record = steps.find((record) => record.step === step);
  if (record === undefined) steps.push({ step, fate });
  else record.fate = fate;
}

/** Adds to the history. */
export function note<D>(instance: Instance<D>, at: string, what: string): void {
  if (instance.history.length >= NOTES_MAX) {
    // The first one says how it began, and is worth keeping.
    instance.history.splice(1, 1);
    instance.history_dropped = (instance.history_dropped ?? 0) + 1;
  }
  instance.history.push({ at, what: shortened(what) });
}

/** A text of limited length. */
export function shortened(text: string): string {
  return [...text].slice(0, TEXT_CHARACTERS_MAX).join("");
}
