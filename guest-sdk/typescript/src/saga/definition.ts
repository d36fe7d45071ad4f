/** What a saga is: its steps, their answers, and what undoes them. */

import type { MessageOptions } from "../effects";
import { Reject } from "../errors";
import type { Event } from "../events";
import type { KeyRule } from "../manifest";
import { days, minutes, seconds } from "../time";
import { json, type Type } from "../types";

/** What names of sagas and steps look like. */
const NAME = /^[a-z][a-z0-9-]{0,31}$/;
/** Most steps of a saga. */
const STEPS_MAX = 32;

/** Which events are meant: by subject, by type, or by both. A text is a pattern of subjects:
 * `payments.*.charged`. */
export type Pattern = string | { subject?: string; type: string };

/** One pattern, or several: events that match one of them are meant. */
export type Patterns = Pattern | readonly Pattern[];

/** A message of a saga, with the options of `Effects.publish`. Its key is the correlation key unless
 * it has one of its own. */
export interface SagaMessage extends MessageOptions {
  subject: string;
  /** Written as JSON; a text or bytes is the data as it is. */
  data?: unknown;
}

/** How often something is attempted, and the pauses in between. */
export interface RetryPolicy {
  /** How often, the first attempt included; `Infinity` for ever. */
  attempts: number;
  /** The pause before the second attempt, in microseconds, which doubles each time; by default 1 s. */
  firstUs?: number | undefined;
  /** The longest pause, in microseconds; by default 5 min. */
  longestUs?: number | undefined;
}

/** What a command or a message of a saga is made from. */
export interface Call<D> {
  /** The correlation key of the instance. */
  readonly key: string;
  /** The name of the step; empty in messages about the end of a saga. */
  readonly step: string;
  /** Which attempt of this command it is, counted from 1. */
  readonly attempt: number;
  /** A text that is the same for all attempts of a step and for its compensation, and different for
   * all others, also of a later instance with the same key: participants recognise by it what they
   * did before. */
  readonly id: string;
  /** Why the saga compensates or is stuck; empty while it runs. */
  readonly reason: string;
  /** The time of the event or timer that causes this: `2026-11-23T14:05:06.123456000Z`. */
  readonly time: string;
  /** What the instance keeps. */
  readonly data: Readonly<D>;
}

/** Makes a message from an instance. */
export type Publish<D> = (call: Call<D>) => SagaMessage;

/** What undoes a step: a command, and the event that confirms it. */
export interface Compensation<D> {
  /** A participant that never carried out the step, or undid it before, must confirm all the same. */
  command: Publish<D>;
  /** An answer that the step is undone. Without one, it is undone once its command is published. */
  succeedsOn?: Patterns | undefined;
  /** An answer that it could not be undone: the retry policy decides. */
  failsOn?: Patterns | undefined;
  /** How long each attempt waits for its answer, in microseconds. */
  timeoutUs?: number | undefined;
  /** How often it is attempted before the instance is stuck; by default 10 times. */
  retry?: RetryPolicy | undefined;
}

/** A step of a saga: a command to a participant, its answers, and what undoes it.
 *
 * Without a command it waits for an event that others cause; without an event to wait for it is done
 * once its command is published. */
export interface Step<D> {
  /** 1 to 32 lower-case letters, digits and hyphens, a letter first. */
  name: string;
  /** The command to the participant, made for each attempt. A participant may get several for one
   * step, and must do the work of `call.id` once. */
  command?: Publish<D> | undefined;
  /** An answer that the step is done. */
  succeedsOn?: Patterns | undefined;
  /** An answer that the step was not done and will not be: the saga compensates. */
  failsOn?: Patterns | undefined;
  /** An answer that an attempt failed and another may succeed: the retry policy decides. */
  retriesOn?: Patterns | undefined;
  /** Keeps something of the answer, such as the number of a payment: changes the data in place, or
   * returns what takes its place. */
  onSuccess?: ((data: D, event: Event) => D | void) | undefined;
  /** How long each attempt waits for its answer, in microseconds. An attempt that times out may have
   * been carried out, so the step is undone if the saga gives up. */
  timeoutUs?: number | undefined;
  /** How often the step is attempted; by default once. */
  retry?: RetryPolicy | undefined;
  /** Makes it the pivot, or point of no return: once it was begun, the saga can't be cancelled any
   * more. Answers still decide: it may fail, and then what was done is undone. */
  pivot?: boolean | undefined;
  /** What undoes the step. */
  compensation?: Compensation<D> | undefined;
}

/** A saga: a process of several steps, each of which can be undone. */
export interface SagaDefinition<D> {
  /** 1 to 32 lower-case letters, digits and hyphens, a letter first. */
  name: string;
  /** The type of what each instance keeps of its own, such as the order. */
  data: Type<D>;
  /** An event starts an instance, unless there is one with its key. */
  startsOn: Patterns;
  /** What a new instance keeps; by default the data of the event. */
  start?: ((event: Event) => D) | undefined;
  /** How the instance of an event is found: events with one key belong to one instance. Use the same
   * rule as in the manifest. By default the second token of the subject. */
  correlateBy?: (KeyRule | ((event: Event) => string)) | undefined;
  /** They run in this order; at most 32. */
  steps: readonly Step<D>[];
  /** An event cancels a running instance: what was done is undone. */
  cancelsOn?: Patterns | undefined;
  /** An event lets a stuck instance try its step again, with all attempts. */
  resumesOn?: Patterns | undefined;
  /** An event tells a stuck instance that its step was dealt with by hand, so that it continues with
   * the next. */
  skipsOn?: Patterns | undefined;
  /** How long an instance is kept after its end, in microseconds, so that events that come late are
   * recognised; `Infinity` keeps all. By default a day. An event that starts an instance of a key
   * whose instance is gone starts a new one. */
  keepEndedUs?: number | undefined;
  /** Publishes a message when an instance completes. */
  onCompleted?: Publish<D> | undefined;
  /** Publishes a message when an instance has undone what it did; `call.reason` says why. */
  onCompensated?: Publish<D> | undefined;
  /** Publishes a message when an instance gets stuck; `call.reason` says why. */
  onStuck?: Publish<D> | undefined;
}

/** A command and its answers: of a step, or of its compensation. */
export interface Action<D> {
  readonly command: Publish<D> | undefined;
  readonly succeeds: readonly Pattern[];
  readonly fails: readonly Pattern[];
  readonly retries: readonly Pattern[];
  readonly timeoutUs: number | undefined;
  readonly retry: Complete<RetryPolicy>;
}

/** A step, checked. */
export interface KnownStep<D> {
  readonly name: string;
  readonly action: Action<D>;
  readonly take: Step<D>["onSuccess"];
  readonly isPivot: boolean;
  readonly compensation: Action<D> | undefined;
}

/** A saga: a process of several steps that others carry out, each of which can be undone.
 *
 * ```ts
 * const orders = new Saga({
 *   name: "orders",
 *   data: record({ cents: u64 }),
 *   startsOn: "orders.*.placed",
 *   steps: [
 *     {
 *       name: "payment",
 *       command: (call) => ({ subject: `payment.${call.key}.charge`, data: { id: call.id, ...call.data } }),
 *       succeedsOn: "payment.*.charged",
 *       failsOn: "payment.*.declined",
 *       timeoutUs: minutes(30),
 *       retry: { attempts: 3 },
 *       compensation: {
 *         command: (call) => ({ subject: `payment.${call.key}.refund`, data: { id: call.id } }),
 *         succeedsOn: "payment.*.refunded",
 *       },
 *     },
 *     {
 *       name: "shipping",
 *       command: (call) => ({ subject: `shipping.${call.key}.send`, data: { id: call.id } }),
 *       succeedsOn: "shipping.*.sent",
 *       failsOn: "shipping.*.refused",
 *     },
 *   ],
 * });
 * ```
 *
 * `Sagas` runs its instances in a handler. */
export class Saga<D> {
  readonly name: string;
  readonly data: Type<D>;
  readonly starts: readonly Pattern[];
  readonly cancels: readonly Pattern[];
  readonly resumes: readonly Pattern[];
  readonly skips: readonly Pattern[];
  readonly steps: readonly KnownStep<D>[];
  readonly keepEndedUs: number;
  readonly onCompleted: Publish<D> | undefined;
  readonly onCompensated: Publish<D> | undefined;
  readonly onStuck: Publish<D> | undefined;
  readonly #start: (event: Event) => D;
  readonly #correlate: (event: Event) => string;
  readonly #patterns: readonly Pattern[];

  /** Throws a `TypeError` that names the mistake in the definition. */
  constructor(definition: SagaDefinition<D>) {
    const { name, data, correlateBy = { subjectToken: 2 }, keepEndedUs = days(1) } = definition;
    checkName(name);
    this.name = name;
    this.data = data;
    this.starts = listed(definition.startsOn);
    this.cancels = listed(definition.cancelsOn);
    this.resumes = listed(definition.resumesOn);
    this.skips = listed(definition.skipsOn);
    this.steps = definition.steps.map((step) => known(name, step));
    if (this.steps.length > STEPS_MAX) throw new TypeError(`saga ${name}: it has more than ${STEPS_MAX} steps`);
    for (const [place, step] of this.steps.entries()) {
      if (this.find(step.name) !== this.steps[place]) {
        throw new TypeError(`saga ${name}: two steps are named ${step.name}; rename one`);
      }
    }
    this.keepEndedUs = keepEndedUs === Infinity ? keepEndedUs : span(`saga ${name}: keepEndedUs`, keepEndedUs);
    this.onCompleted = definition.onCompleted;
    this.onCompensated = definition.onCompensated;
    this.onStuck = definition.onStuck;
    this.#start = definition.start ?? ((event) => event.json(data));
    this.#correlate = typeof correlateBy === "function" ? correlateBy : (event) => keyBy(correlateBy, event);
    const actions = this.steps.flatMap((step) => [step.action, step.compensation ?? []].flat());
    this.#patterns = [
      ...[this.starts, this.cancels, this.resumes, this.skips].flat(),
      ...actions.flatMap(({ succeeds, fails, retries }) => [...succeeds, ...fails, ...retries]),
    ];
  }

  /** The subjects of all its patterns, each once, for the manifest. */
  get subjects(): string[] {
    const subjects = this.#patterns.map((pattern) => (typeof pattern === "string" ? pattern : pattern.subject));
    return [...new Set(subjects.filter((subject) => subject !== undefined))];
  }

  /** Whether it sets timers: the manifest must then say `timers: true`. */
  get setsTimers(): boolean {
    const sets = ({ timeoutUs, retry, retries }: Action<D>) =>
      timeoutUs !== undefined || (retry.attempts > 1 && retries.length > 0);
    const actions = this.steps.flatMap((step) => [step.action, step.compensation ?? []].flat());
    return this.keepEndedUs !== Infinity || actions.some(sets);
  }

  find(step: string | undefined): KnownStep<D> | undefined {
    return this.steps.find(({ name }) => name === step);
  }

  concerns(event: Event): boolean {
    return matchesAny(this.#patterns, event);
  }

  keyOf(event: Event): string {
    return this.#correlate(event);
  }

  /** What a new instance keeps, checked. */
  begin(event: Event): D {
    return this.data.check(this.#start(event));
  }
}

/** Whether an event matches one of some patterns. */
export function matchesAny(patterns: readonly Pattern[], event: Event): boolean {
  return patterns.some((pattern) => {
    if (typeof pattern === "string") return event.isUnder(pattern);
    return pattern.type === event.kind && (pattern.subject === undefined || event.isUnder(pattern.subject));
  });
}

/** A type whose fields are all given. */
export type Complete<T> = { [K in keyof T]-?: Exclude<T[K], undefined> };

/** The pause after an attempt, counted from 1, in microseconds. */
export function pauseAfter({ firstUs, longestUs }: Complete<RetryPolicy>, attempt: number): number {
  return Math.min(firstUs * 2 ** Math.min(Math.max(attempt, 1) - 1, 31), longestUs);
}

function known<D>(saga: string, step: Step<D>): KnownStep<D> {
  checkName(step.name);
  const place = `saga ${saga}: step ${step.name}`;
  const { compensation: undo } = step;
  const action = actionOf(place, step, { attempts: 1 });
  // What could not be undone is tried again: no answer gives a compensation up.
  const undoing = undo && { ...undo, failsOn: undefined, retriesOn: undo.failsOn };
  const compensation = undoing && actionOf(`${place}: compensation`, undoing, { attempts: 10 });
  const isSound = ({ command, succeeds, fails, retries, timeoutUs }: Action<D>) =>
    succeeds.length > 0 ||
    (command !== undefined && fails.length === 0 && retries.length === 0 && timeoutUs === undefined);
  if (!isSound(action) || (compensation && !isSound(compensation))) {
    throw new TypeError(
      `${place} or its compensation has a time-out or a failing answer, and no answer that it is done; add succeedsOn`,
    );
  }
  return { name: step.name, action, take: step.onSuccess, isPivot: step.pivot ?? false, compensation };
}

function actionOf<D>(
  place: string,
  { command, succeedsOn, failsOn, retriesOn, timeoutUs, retry }: Omit<Step<D>, "name" | "compensation">,
  otherwise: RetryPolicy,
): Action<D> {
  const { attempts, firstUs = seconds(1), longestUs = minutes(5) } = retry ?? otherwise;
  if (!(attempts >= 1) || (attempts !== Infinity && !Number.isSafeInteger(attempts))) {
    throw new TypeError(`${place}: ${attempts} attempts; use a whole number from 1, or Infinity`);
  }
  return {
    command,
    succeeds: listed(succeedsOn),
    fails: listed(failsOn),
    retries: listed(retriesOn),
    timeoutUs: timeoutUs === undefined ? undefined : span(`${place}: timeoutUs`, timeoutUs),
    retry: { attempts, firstUs: span(`${place}: firstUs`, firstUs), longestUs: span(`${place}: longestUs`, longestUs) },
  };
}

function listed(patterns: Patterns | undefined): readonly Pattern[] {
  if (patterns === undefined) return [];
  return Array.isArray(patterns) ? patterns : [patterns as Pattern];
}

function span(place: string, microseconds: number): number {
  if (!Number.isSafeInteger(microseconds) || microseconds < 0) {
    throw new TypeError(`${place}: ${microseconds} is no number of microseconds; use seconds(…) or minutes(…)`);
  }
  return microseconds;
}

function checkName(name: string): void {
  if (!NAME.test(name)) {
    throw new TypeError(
      `name "${name}" of a saga or step: use 1 to 32 lower-case letters, digits and hyphens, a letter first`,
    );
  }
}

/** The key of an event by a rule. */
function keyBy(rule: KeyRule, event: Event): string {
  const missing = (what: string) =>
    new Reject(`event ${event.sequence} (${event.subject}) has no ${what}, so it belongs to no saga`);
  if (rule === "subject") return event.subject;
  if ("subjectToken" in rule) return event.token(rule.subjectToken);
  if ("header" in rule) {
    const found = event.headers.get(rule.header);
    if (found === undefined) throw missing(`header ${rule.header}`);
    return found;
  }
  const found = at(event.json(json), rule.dataPointer);
  if (typeof found === "string") return found;
  // A number that is not exact could be the key of another instance.
  if (Number.isSafeInteger(found)) return String(found);
  throw missing(`text or whole number at ${rule.dataPointer}`);
}

/** The value at a JSON pointer (RFC 6901). */
function at(value: unknown, pointer: string): unknown {
  const steps = pointer.split("/");
  if (steps.shift() !== "") return undefined;
  for (const step of steps) {
    const name = step.replaceAll("~1", "/").replaceAll("~0", "~");
    if (value === null || typeof value !== "object") return undefined;
    if (Array.isArray(value) && !/^(0|[1-9]\d*)$/.test(name)) return undefined;
    value = Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
  }
  return value;
}
