/** Event time. There is no clock: a fold depends on its events only.
 *
 * Days and instants are texts, which sort as time does: `2026-11-23`, and
 * `2026-11-23T14:05:06.123456789Z` with nine decimals. */

const DAY_SECONDS = 86_400;
const SECOND = 1_000_000_000n;
const NANOSECONDS_MAX = 2n ** 64n - 1n;
const DATE = /^(\d{4})-(\d\d)-(\d\d)$/;
const TIME = /^(\d{4}-\d\d-\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))$/;

/** Days of a date since 1970-01-01, or none if the text is no date of 1970 to 9999. */
export function daysOf(date: string): number | undefined {
  const match = DATE.exec(date);
  if (match === null) return undefined;
  const [year, month, day] = [Number(match[1]), Number(match[2]), Number(match[3])];
  const days = daysFrom(year, month, day);
  // A day that a month does not have is another date.
  return year >= 1970 && dateOf(days) === date ? days : undefined;
}

/** The last date that was asked for: events of a batch are usually of one day. */
let lastDate: { days: number; date: string } | undefined;

/** The date that is this many days after 1970-01-01. */
export function dateOf(days: number): string {
  if (lastDate?.days !== days) lastDate = { days, date: writtenDate(days) };
  return lastDate.date;
}

function writtenDate(days: number): string {
  // By Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March.
  const shifted = days + 719_468;
  const era = Math.floor(shifted / 146_097);
  const ofEra = shifted - era * 146_097;
  const yearOfEra = Math.floor(
    (ofEra - Math.floor(ofEra / 1_460) + Math.floor(ofEra / 36_524) - Math.floor(ofEra / 146_096)) / 365,
  );
  const ofYear = ofEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const shiftedMonth = Math.floor((5 * ofYear + 2) / 153);
  const day = ofYear - Math.floor((153 * shiftedMonth + 2) / 5) + 1;
  const month = shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9;
  const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
  return `${pad(year, 4)}-${pad(month, 2)}-${pad(day, 2)}`;
}

function daysFrom(year: number, month: number, day: number): number {
  const shiftedYear = month <= 2 ? year - 1 : year;
  const era = Math.floor(shiftedYear / 400);
  const yearOfEra = shiftedYear - era * 400;
  const ofYear = Math.floor((153 * (month > 2 ? month - 3 : month + 9) + 2) / 5) + day - 1;
  const ofEra = yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + ofYear;
  return era * 146_097 + ofEra - 719_468;
}

/** The day a number of days after another, which may be negative. Throws a `RangeError` outside of
 * the years 1970 to 9999. */
export function addDays(date: string, count: number): string {
  const days = daysOf(date);
  const moved = (days ?? NaN) + count;
  if (!(moved >= 0 && moved <= 2_932_896)) throw new RangeError(`${date} and ${count} days is no date`);
  return dateOf(moved);
}

/** An instant as text, from nanoseconds since the Unix epoch. */
export function timeOf(nanoseconds: bigint): string {
  const seconds = Number(nanoseconds / SECOND);
  const ofDay = seconds % DAY_SECONDS;
  const [hour, minute] = [Math.floor(ofDay / 3_600), Math.floor(ofDay / 60) % 60];
  const fraction = pad(Number(nanoseconds % SECOND), 9);
  return `${dateOf(Math.floor(seconds / DAY_SECONDS))}T${pad(hour, 2)}:${pad(minute, 2)}:${pad(ofDay % 60, 2)}.${fraction}Z`;
}

/** Nanoseconds since the Unix epoch of an RFC 3339 time, or none if the text is none of 1970 to
 * 2554. */
export function nanosecondsOf(time: string): bigint | undefined {
  const match = TIME.exec(time);
  if (match === null) return undefined;
  const [hour, minute, second] = [Number(match[2]), Number(match[3]), Number(match[4])];
  const days = daysOf(match[1]!);
  const [hours, minutes] = [Number(match[7] ?? 0), Number(match[8] ?? 0)];
  if (days === undefined || hour > 23 || minute > 59 || second > 59 || hours > 23 || minutes > 59) {
    return undefined;
  }
  const offset = (hours * 3_600 + minutes * 60) * (match[6] === "-" ? -1 : 1);
  const seconds = days * DAY_SECONDS + hour * 3_600 + minute * 60 + second - offset;
  const nanoseconds = BigInt(seconds) * SECOND + BigInt((match[5] ?? "").padEnd(9, "0"));
  return nanoseconds >= 0n && nanoseconds <= NANOSECONDS_MAX ? nanoseconds : undefined;
}

/** The time that is a number of microseconds after another, at the latest the last one that there is. */
export function timeAfter(time: string, microseconds: number): string {
  const nanoseconds = nanosecondsOf(time)! + BigInt(microseconds) * 1_000n;
  return timeOf(nanoseconds > NANOSECONDS_MAX ? NANOSECONDS_MAX : nanoseconds);
}

/** The nearest microsecond of a time, since the Unix epoch: timers are exact to that. */
export function microsecondsOf(time: string): number {
  return Number((nanosecondsOf(time)! + 500n) / 1_000n);
}

function pad(number: number, width: number): string {
  return String(number).padStart(width, "0");
}

/** A number of seconds in microseconds, to add to the time of an event. */
export function seconds(count: number): number {
  return Math.round(count * 1_000_000);
}

/** A number of minutes in microseconds. */
export function minutes(count: number): number {
  return seconds(count * 60);
}

/** A number of hours in microseconds. */
export function hours(count: number): number {
  return seconds(count * 3_600);
}

/** A number of days of 24 hours in microseconds. */
export function days(count: number): number {
  return seconds(count * DAY_SECONDS);
}
