/** How an instance proceeds: what an answer, a time-out or an operator changes, and which commands
 * and timers follow. It knows no tables. */

import type { Effects } from "../effects";
import type { Event } from "../events";
import { microsecondsOf, nanosecondsOf, timeAfter } from "../time";
import { matchesAny, pauseAfter, type Action, type KnownStep, type Publish, type Saga } from "./definition";
import { fateOf, hasEnded, note, setFate, shortened, type Instance, type Status } from "./instance";
import type { Ignored } from "./listing";

/** What an event says about an action. */
type Answer = "success" | "failure" | "transient";

/** One instance that meets one event, or one timer. */
export class Transition<D> {
  readonly #now: string;

  constructor(
    readonly saga: Saga<D>,
    readonly key: string,
    /** The name of its timer. */
    readonly timer: string,
    time: string,
    readonly instance: Instance<D>,
    readonly effects: Effects,
  ) {
    // Texts of times sort like the times.
    if (instance.updated < time) instance.updated = time;
    this.#now = instance.updated;
  }

  /** Begins the first step. */
  start(event: Event): void {
    this.#note(`started by ${event.kind}`);
    this.#proceed();
  }

  /** Takes an event that concerns the saga. Returns why it changed nothing, if it did not. */
  meet(event: Event): Ignored | undefined {
    const { saga, instance } = this;
    const ended = hasEnded(instance.status);
    const action = ended ? undefined : this.#action();
    const answer = action && answerOf(action, event);
    if (answer !== undefined) {
      this.#free();
      return this.#answered(answer, event);
    }
    const isStuck = instance.status === "stuck";
    if (isStuck && matchesAny(saga.resumes, event)) {
      this.#free();
      return void this.#resume();
    }
    if (isStuck && matchesAny(saga.skips, event)) {
      this.#free();
      return void this.#skip();
    }
    const hasTurned = saga.steps.some((step) => step.isPivot && fateOf(instance, step.name) !== undefined);
    if (!instance.undoing && !ended && !hasTurned && matchesAny(saga.cancels, event)) {
      this.#free();
      return void this.#cancel(event);
    }
    return this.#other(event);
  }

  /** Its timer fires. */
  fire(): void {
    const { instance } = this;
    instance.due = undefined;
    const action = this.#action();
    if (action === undefined) return this.lostStep();
    if (instance.wait === "answer") {
      this.#attemptFailed(`no answer within ${shown(action.timeoutUs ?? 0)}`, true);
    } else if (instance.wait === "retry") {
      instance.attempt += 1;
      this.#send(action);
    }
  }

  /** Whether the current step is known, or none is current. */
  isKnown(): boolean {
    return this.instance.step === undefined || this.#action() !== undefined;
  }

  /** The current step is not in this version of the saga. */
  lostStep(): void {
    this.#stuck(`step ${this.#step} or its compensation is not in this version of the saga`);
  }

  #answered(answer: Answer, event: Event): Ignored | undefined {
    const { instance } = this;
    const step = this.#step;
    if (answer === "success" && instance.undoing) {
      this.#note(`${step}: undone (${event.kind})`);
      setFate(instance, step, "undone");
      this.#compensate();
    } else if (answer === "success") {
      this.#take(step, event);
      this.#note(`${step}: done (${event.kind})`);
      setFate(instance, step, "done");
      this.#proceed();
    } else if (answer === "transient") {
      // The next attempt is due already: the same answer again.
      if (instance.wait !== "answer") return "duplicate";
      this.#attemptFailed(event.kind, false);
    } else {
      if (instance.wait === "nothing") return "late";
      this.#stepFailed(event.kind, false);
    }
    return undefined;
  }

  /** An attempt of the current action failed, or timed out. */
  #attemptFailed(why: string, isInDoubt: boolean): void {
    const { instance } = this;
    const step = this.#step;
    const action = this.#action();
    if (action === undefined) return this.lostStep();
    const { attempt } = instance;
    this.#note(`${step}: ${instance.undoing ? "undoing it" : "attempt"} ${attempt} failed: ${why}`);
    if (attempt < action.retry.attempts) {
      instance.wait = "retry";
      return this.#setTimer(pauseAfter(action.retry, attempt));
    }
    if (instance.undoing) return this.#stuck(`${step} could not be undone: ${why}`);
    this.#stepFailed(why, isInDoubt);
  }

  /** The current step is given up. */
  #stepFailed(why: string, isInDoubt: boolean): void {
    const step = this.#step;
    this.#note(`${step}: failed: ${why}`);
    // An answer may be to an earlier attempt, and say nothing about a later one.
    this.#giveUp(step, isInDoubt || this.instance.attempt > 1);
    this.instance.reason = shortened(`${step}: ${why}`);
    this.#compensate();
  }

  /** Notes what became of a step that was not answered. Without a command nobody was asked, and
   * nothing is in doubt. */
  #giveUp(step: string, isInDoubt: boolean): void {
    const known = this.saga.find(step);
    const hasCommand = known === undefined || known.action.command !== undefined;
    setFate(this.instance, step, isInDoubt && hasCommand ? "in-doubt" : "failed");
  }

  #cancel(event: Event): void {
    this.#note(`cancelled (${event.kind})`);
    this.#giveUp(this.#step, true);
    this.instance.reason = shortened(`cancelled: ${event.kind}`);
    this.#compensate();
  }

  /** An operator wants the current action tried again. */
  #resume(): void {
    const action = this.#action();
    if (action === undefined) return this.lostStep();
    this.#note("resumed by an operator");
    this.#enter(this.instance.status, this.#step);
    this.#send(action);
    if (!waits(action)) this.#skip();
  }

  /** The current action counts as carried out. */
  #skip(): void {
    const step = this.#step;
    this.#note(`${step}: counts as dealt with`);
    if (this.instance.undoing) {
      setFate(this.instance, step, "undone");
      this.#compensate();
    } else {
      setFate(this.instance, step, "done");
      this.#proceed();
    }
  }

  /** An event that is not about the current action. */
  #other(event: Event): Ignored | undefined {
    const { saga, instance } = this;
    const ended = hasEnded(instance.status);
    for (const step of saga.steps) {
      const answer = answerOf(step.action, event);
      if (answer !== undefined) return this.#answerOfOther(step, answer, event);
      if (step.compensation && answerOf(step.compensation, event) !== undefined) {
        if (ended) return "ended";
        return fateOf(instance, step.name) === "undone" ? "duplicate" : "early";
      }
    }
    if (ended) return "ended";
    // Otherwise an operator's event for an instance that is not stuck, or a second cancellation.
    return matchesAny(saga.starts, event) ? "duplicate" : "late";
  }

  #answerOfOther(step: KnownStep<D>, answer: Answer, event: Event): Ignored | undefined {
    const { instance } = this;
    const isSuccess = answer === "success";
    const ended = hasEnded(instance.status);
    const givesUp = instance.undoing === true || instance.status === "compensated";
    const fate = fateOf(instance, step.name);
    const nobodyAsked = fate === undefined && step.action.command === undefined;
    const countsAsFailed = fate === "failed" || (nobodyAsked && givesUp);
    // It was done although it was given up: what nobody undoes would be lost.
    if (isSuccess && countsAsFailed && step.compensation) return void this.#doneAfterAll(step, event);
    if (isSuccess && fate === "in-doubt" && !ended) {
      // Its compensation may need what the answer says.
      this.#take(step.name, event);
      this.#note(`${step.name}: done after all (${event.kind})`);
      setFate(instance, step.name, "done");
      return undefined;
    }
    if (ended) return "ended";
    if (nobodyAsked && !givesUp && answer !== "transient") return this.#answeredEarly(step.name, isSuccess, event);
    if (fate === undefined) return "early";
    return (isSuccess && fate === "done") || (!isSuccess && fate === "failed") ? "duplicate" : "late";
  }

  /** A step without a command ends before its turn. Nobody says it again, so that it is kept until then.
   * A success counts, whatever else was said. */
  #answeredEarly(name: string, isSuccess: boolean, event: Event): Ignored | undefined {
    const { instance } = this;
    const failures = instance.early_failures ?? [];
    const others = failures.filter(({ step }) => step !== name);
    if (instance.early?.includes(name)) return isSuccess ? "duplicate" : "late";
    if (isSuccess) {
      instance.early_failures = others;
      this.#take(name, event);
      this.#note(`${name}: done before its turn (${event.kind})`);
      instance.early = [...(instance.early ?? []), name];
      return undefined;
    }
    if (others.length < failures.length) return "duplicate";
    instance.early_failures = [...failures, { step: name, why: shortened(event.kind) }];
    this.#note(`${name}: failed before its turn (${event.kind})`);
    return undefined;
  }

  /** A step that had failed was done: it is undone as well, by an operator if all else has ended. */
  #doneAfterAll(step: KnownStep<D>, event: Event): void {
    const { instance } = this;
    this.#take(step.name, event);
    this.#note(`${step.name}: done although it had failed (${event.kind})`);
    setFate(instance, step.name, "done");
    if (!hasEnded(instance.status)) return;
    instance.undoing = true;
    instance.step = step.name;
    this.#stuck(`${step.name} was done after the saga had ended`);
  }

  /** Begins the next step, and all after it that wait for nothing. */
  #proceed(): void {
    const { instance } = this;
    for (let step = this.#nextStep(); step !== undefined; step = this.#nextStep()) {
      const { name, action } = step;
      setFate(instance, name, "waiting");
      this.#enter("running", name);
      const failure = instance.early_failures?.find((early) => early.step === name);
      if (instance.early?.includes(name)) {
        instance.early = instance.early.filter((early) => early !== name);
      } else if (failure !== undefined) {
        instance.early_failures = instance.early_failures?.filter((early) => early !== failure);
        return this.#stepFailed(failure.why, false);
      } else {
        this.#send(action);
        if (waits(action)) return;
      }
      setFate(instance, name, "done");
    }
    this.#end("completed", this.saga.onCompleted);
  }

  /** The step after the furthest one that was begun. Steps that a newer version inserted before that
   * are left out. */
  #nextStep(): KnownStep<D> | undefined {
    const { steps } = this.saga;
    return steps[steps.findLastIndex((step) => fateOf(this.instance, step.name) !== undefined) + 1];
  }

  /** Undoes the last step that is not undone, and all before it that need no answer. */
  #compensate(): void {
    const { instance, saga } = this;
    instance.undoing = true;
    for (const step of instance.early ?? []) setFate(instance, step, "done");
    instance.early = undefined;
    for (const { step } of instance.early_failures ?? []) setFate(instance, step, "failed");
    instance.early_failures = undefined;
    for (let name = this.#nextToUndo(); name !== undefined; name = this.#nextToUndo()) {
      this.#enter("compensating", name);
      const undo = saga.find(name)?.compensation;
      if (undo === undefined) return this.lostStep();
      this.#send(undo);
      if (waits(undo)) return;
      this.#note(`${name}: undone`);
      setFate(instance, name, "undone");
    }
    this.#end("compensated", saga.onCompensated);
  }

  /** The last step to undo; without its definition, nobody knows how. Steps that have no
   * compensation are passed over. */
  #nextToUndo(): string | undefined {
    const isDone = (fate: string) => fate === "done" || fate === "in-doubt";
    const canStay = (step: KnownStep<D> | undefined) => step !== undefined && step.compensation === undefined;
    return this.instance.steps.findLast(({ step, fate }) => isDone(fate) && !canStay(this.saga.find(step)))?.step;
  }

  #end(status: Status, message: Publish<D> | undefined): void {
    Object.assign(this.instance, { status, step: undefined, since: this.#now });
    Object.assign(this.instance, { undoing: undefined, wait: "nothing", attempt: 0 });
    this.#note(status);
    this.#publish(message);
    const { keepEndedUs } = this.saga;
    if (keepEndedUs === Infinity) this.#clearTimer();
    else this.#setTimer(keepEndedUs);
  }

  /** It is stuck no more, whatever comes next. */
  #free(): void {
    const { instance } = this;
    if (instance.status !== "stuck") return;
    instance.reason = instance.reason_before;
    instance.reason_before = undefined;
    instance.status = instance.undoing ? "compensating" : "running";
  }

  #stuck(why: string): void {
    const { instance } = this;
    if (instance.status !== "stuck") instance.reason_before = instance.reason;
    Object.assign(instance, { status: "stuck", since: this.#now, wait: "nothing", reason: shortened(why) });
    this.#clearTimer();
    this.#note(`stuck: ${why}`);
    this.#publish(this.saga.onStuck);
  }

  /** Begins an action, with its first attempt. */
  #enter(status: Status, step: string): void {
    Object.assign(this.instance, { status, step, since: this.#now, attempt: 1 });
  }

  /** Publishes the command of the current attempt. */
  #send(action: Action<D>): void {
    this.#publish(action.command);
    this.instance.wait = "answer";
    if (action.timeoutUs !== undefined && waits(action)) this.#setTimer(action.timeoutUs);
    else this.#clearTimer();
  }

  #publish(message: Publish<D> | undefined): void {
    if (message === undefined) return;
    const { saga, key, instance } = this;
    const step = instance.step ?? "";
    const { subject, data, ...options } = message({
      key,
      step,
      attempt: instance.attempt,
      id: `${saga.name}/${key}/${nanosecondsOf(instance.started)}/${step}`,
      reason: instance.reason ?? "",
      time: this.#now,
      data: instance.data,
    });
    // A compensation must not overtake the command that it undoes.
    this.effects.publish(subject, data, { ...options, key: options.key ?? key });
  }

  #setTimer(spanUs: number): void {
    const due = timeAfter(this.#now, spanUs);
    this.instance.due = due;
    this.effects.setTimer(this.timer, microsecondsOf(due), { key: this.key });
  }

  #clearTimer(): void {
    if (this.instance.due === undefined) return;
    this.instance.due = undefined;
    this.effects.cancelTimer(this.timer);
  }

  #take(step: string, event: Event): void {
    const { instance } = this;
    const taken = this.saga.find(step)?.take?.(instance.data, event);
    if (taken !== undefined) instance.data = taken as D;
  }

  /** The current action; none if nothing is current, or this version of the saga has no such step. */
  #action(): Action<D> | undefined {
    const step = this.saga.find(this.instance.step);
    return this.instance.undoing ? step?.compensation : step?.action;
  }

  get #step(): string {
    return this.instance.step ?? "";
  }

  #note(what: string): void {
    note(this.instance, this.#now, what);
  }
}

function answerOf<D>({ succeeds, fails, retries }: Action<D>, event: Event): Answer | undefined {
  if (matchesAny(succeeds, event)) return "success";
  if (matchesAny(fails, event)) return "failure";
  return matchesAny(retries, event) ? "transient" : undefined;
}

/** Whether it waits for an answer. */
function waits<D>({ succeeds }: Action<D>): boolean {
  return succeeds.length > 0;
}

/** A span of time for people, as SDKs of all languages note it: `3s`, `1.5s`, `500ms`. */
function shown(microseconds: number): string {
  if (microseconds >= 1_000_000) return `${microseconds / 1_000_000}s`;
  if (microseconds >= 1_000) return `${microseconds / 1_000}ms`;
  return microseconds === 0 ? "0ns" : `${microseconds}µs`;
}
