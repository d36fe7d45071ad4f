/** Errors by which a module says what went wrong, and what may help. */

/** The event can never be applied. The deployment stops at it and shows the message. */
export class Reject extends Error {
  override name = "Reject";
}

/** The event may be applied later. The host tries again, as often as the manifest says. */
export class Retry extends Error {
  override name = "Retry";
}

/** The state has nothing for the arguments of a query. */
export class NotFound extends Error {
  override name = "NotFound";
}

/** The arguments of a query do not fit it. The message says how. */
export class InvalidArguments extends Error {
  override name = "InvalidArguments";
}

/** A value does not match its type. The message says where and how. */
export class Mismatch extends Error {
  override name = "Mismatch";

  /** The same, inside of a field or an element. */
  within(place: string): Mismatch {
    return new Mismatch(`${place}: ${this.message}`);
  }
}

const DELIBERATE = [Reject, Retry, NotFound, InvalidArguments, Mismatch];

/** Whether an error is an answer, and needs no stack trace. */
export function isDeliberate(error: unknown): boolean {
  return DELIBERATE.some((kind) => error instanceof kind);
}

/** Most errors of an `AggregateError` that are shown. */
const ERRORS_MAX = 4;

/** One line about what was thrown, with its causes. Errors that were thrown on purpose are shown by
 * their messages alone, others with their class and the first line of their stack. It is a text that
 * a host takes: half of a pair of surrogates becomes U+FFFD. */
export function summary(error: unknown, place: (error: Error) => string = () => ""): string {
  if (!(error instanceof Error)) return `thrown: ${textOf(error)}`.toWellFormed();
  let shown = isDeliberate(error)
    ? error.message || error.name
    : `${error.name}: ${error.message}${place(error)}`;
  if (error instanceof AggregateError) {
    const errors = error.errors.slice(0, ERRORS_MAX).map((one) => summary(one, place));
    shown += `: ${errors.join("; ")}`;
  }
  return (error.cause === undefined ? shown : `${shown}: ${summary(error.cause, place)}`).toWellFormed();
}

/** Anything as text, whatever its own methods do. */
function textOf(thrown: unknown): string {
  try {
    return String(thrown);
  } catch {
    return "a value that cannot be shown";
  }
}
