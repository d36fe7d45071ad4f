/** Stack traces in the terms of the sources: a component contains one bundled file, and the map that
 * `foldstream build` adds to it says where its lines come from. */

interface SourceMap {
  sources: string[];
  /** Where the lines of the bundle come from, in the form of the Source Map format 3. */
  mappings: string;
}

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/** For each line of the bundle: its columns, each with source and line, by column. */
type Lines = { column: number; source: number; line: number }[][];

let lines: Lines | undefined;

function sourceMap(): SourceMap | undefined {
  return (globalThis as { __foldstreamMap?: SourceMap }).__foldstreamMap;
}

function decode(mappings: string): Lines {
  let [source, line] = [0, 0];
  return mappings.split(";").map((text) => {
    let column = 0;
    const segments: Lines[number] = [];
    for (const segment of text.split(",")) {
      const numbers: number[] = [];
      let [value, shift] = [0, 0];
      for (const character of segment) {
        const digit = DIGITS.indexOf(character);
        value |= (digit & 31) << shift;
        if (digit & 32) {
          shift += 5;
        } else {
          numbers.push(value & 1 ? -(value >> 1) : value >> 1);
          [value, shift] = [0, 0];
        }
      }
      column += numbers[0] ?? 0;
      if (numbers.length >= 4) {
        source += numbers[1]!;
        line += numbers[2]!;
        segments.push({ column, source, line });
      }
    }
    return segments;
  });
}

function resolve(line: number, column: number): string | undefined {
  const map = sourceMap();
  if (map === undefined) return undefined;
  lines ??= decode(map.mappings);
  const found = lines[line - 1]?.findLast((segment) => segment.column <= column - 1) ?? lines[line - 1]?.[0];
  return found && `${map.sources[found.source]}:${found.line + 1}`;
}

/** A stack trace with the places of the sources instead of those of the bundle. */
export function resolveStack(stack: string): string {
  return stack
    .split("\n")
    .filter((frame) => frame.trim() !== "")
    .map((frame) => frame.replace(/[^\s(]*?:(\d+):(\d+)/, (all, line, column) => resolve(Number(line), Number(column)) ?? all))
    // What the map does not have is of the bundler.
    .filter((frame) => !/\/bundle\.js:\d/.test(frame))
    .join("\n");
}

/** The innermost place of an error that is in the module itself, for a message. */
export function firstPlace(error: Error): string {
  const frames = resolveStack(error.stack ?? "").split("\n");
  const own = frames.find((frame) => /:\d+\)?$/.test(frame.trim()) && !frame.includes("foldstream-sdk"));
  return own === undefined ? "" : ` (${own.trim().replace(/^at /, "").replace(/[()]/g, "")})`;
}
