//! What commands print: data on standard output, messages on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter as _;

use super::json;
use super::log_writer::{self, LogWriter};

/// Output formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document per line.
    Ndjson,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Output settings of a command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    /// Output format.
    pub format: Format,
    /// Print no messages except errors.
    pub quiet: bool,
    /// Print more messages.
    pub verbose: bool,
    /// When colours are used.
    pub color: Color,
}

impl Output {
    /// Prints one line of data.
    pub fn line(&self, text: &str) -> io::Result<()> {
        // One lock for the line and its end, so that lines of two threads do not mix.
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.write_all(b"\n")?;
        // Data goes to pipes, whose reader waits for it.
        stdout.flush()
    }

    /// Prints bytes as they are.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Prints one item; `people` formats it as text.
    pub fn one<T: Serialize>(
        &self,
        thing: &T,
        people: impl FnOnce(&T) -> String,
    ) -> io::Result<()> {
        match self.format {
            // It may quote what a module said.
            Format::Table => self.line(&harmless(&people(thing))),
            Format::Json => self.line(&pretty(thing)),
            Format::Ndjson => self.line(&compact(thing)),
        }
    }

    /// Prints a list; `whole` is the JSON document that contains it.
    pub fn many<T: Serialize>(
        &self,
        things: &[T],
        whole: &impl Serialize,
        people: impl FnOnce(&[T]) -> String,
    ) -> io::Result<()> {
        match self.format {
            // The same here.
            Format::Table => self.line(&harmless(&people(things))),
            Format::Json => self.line(&pretty(whole)),
            Format::Ndjson => things
                .iter()
                .try_for_each(|thing| self.line(&compact(thing))),
        }
    }

    /// Prints a message.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// Prints a message if the user asked for more.
    pub fn detail(&self, text: &str) {
        if self.verbose {
            say(text);
        }
    }

    /// Prints an error.
    pub fn error(&self, text: &str) {
        self.marked("ERROR", RED, "error:", text);
    }

    /// Prints a warning.
    pub fn warning(&self, text: &str) {
        if !self.quiet {
            self.marked("WARN", YELLOW, "warning:", text);
        }
    }

    fn marked(&self, level: &str, color: &str, mark: &str, text: &str) {
        if JSON_MESSAGES.load(Ordering::Relaxed) || !self.paints() {
            let mark = if JSON_MESSAGES.load(Ordering::Relaxed) {
                String::new()
            } else {
                format!("{mark} ")
            };
            return say_as(level, &format!("{mark}{text}"));
        }
        write_line(&format!(
            "\u{1b}[{color}m{mark}\u{1b}[0m {}",
            harmless(text)
        ));
    }

    /// Waits until all messages are written, but not for long: the process is about to end.
    pub fn finish(&self) {
        log_writer::running().into_iter().for_each(LogWriter::flush);
    }

    /// Whether a progress bar can be drawn.
    pub fn draws(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// Prints a message even with `--quiet`.
    pub fn say(&self, text: &str) {
        say(text);
    }

    /// Whether messages are coloured.
    pub fn paints(&self) -> bool {
        match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                io::stderr().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
            }
        }
    }
}

const RED: &str = "1;31";
const YELLOW: &str = "1;33";

/// Whether messages are lines of JSON, like the log lines around them. Relaxed: a message in the
/// moment of the change may have either form.
static JSON_MESSAGES: AtomicBool = AtomicBool::new(false);

/// Writes messages as lines of JSON from now on.
pub fn write_messages_as_json() {
    JSON_MESSAGES.store(true, Ordering::Relaxed);
    // The message of a panic appears between the same lines.
    std::panic::set_hook(Box::new(|panic| {
        if !crate::panics::is_reported_elsewhere(panic) {
            say_as("ERROR", &panic.to_string());
        }
    }));
}

/// A message matters less than the work: a closed standard error does not end the command.
fn say(text: &str) {
    say_as("INFO", text);
}

fn say_as(level: &str, text: &str) {
    if JSON_MESSAGES.load(Ordering::Relaxed) {
        let timestamp = jiff::Timestamp::now().to_string();
        let line = serde_json::json!({ "timestamp": timestamp, "level": level, "message": text, "target": "foldstream" });
        write_line(&line.to_string());
        return;
    }
    // A message may quote what a module or another host said.
    write_line(&harmless(text));
}

/// Through the log once it runs, like the lines around it: a reader that stopped would keep the
/// host from stopping.
fn write_line(line: &str) {
    let _ = match log_writer::running() {
        Some(log) => writeln!(log.make_writer(), "{line}"),
        None => writeln!(io::stderr().lock(), "{line}"),
    };
}

/// Text without control characters that could take over a terminal; line breaks are kept.
fn harmless(text: &str) -> String {
    if !text.chars().any(is_harmful) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| {
            if is_harmful(c) {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

fn is_harmful(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
}

/// Indented JSON.
pub fn pretty(thing: &impl Serialize) -> String {
    // Also within values that are passed on unparsed.
    json::indented(&compact(thing))
}

/// JSON on one line.
pub fn compact(thing: &impl Serialize) -> String {
    serde_json::to_string(thing).expect("what the API sends is representable as JSON")
}

/// A table without borders: two spaces between columns, and a last column of any width.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .force_no_tty();
    if !header.is_empty() {
        table.set_header(
            header
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>(),
        );
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Text without the characters with which a key or a value could take over a terminal, or pretend
/// to be another.
pub fn printable(text: &str) -> String {
    if !text.chars().any(takes_over) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| {
            if takes_over(c) {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// Control characters, and those that turn the direction of what follows or end a line.
fn takes_over(c: char) -> bool {
    // Unicode's line and paragraph separators.
    const LINE_ENDS: std::ops::RangeInclusive<char> = '\u{2028}'..='\u{2029}';
    const EMBEDDINGS: std::ops::RangeInclusive<char> = '\u{202a}'..='\u{202e}';
    const ISOLATES: std::ops::RangeInclusive<char> = '\u{2066}'..='\u{2069}';
    const MARKS: [char; 3] = ['\u{200e}', '\u{200f}', '\u{61c}'];
    c.is_control()
        || LINE_ENDS.contains(&c)
        || EMBEDDINGS.contains(&c)
        || ISOLATES.contains(&c)
        || MARKS.contains(&c)
}

/// A figure, or `unknown`.
pub fn known<T>(value: Option<T>, shown: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "unknown".to_owned(), shown)
}

/// A number with thousands separators: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 event`, `1,234 events`.
pub fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// A size for people: `1.5 MiB`.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1_024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1_024.0;
    let mut unit = 0;
    // At 1,023.95 one decimal would round to 1,024.0 of the smaller unit.
    while value >= 1_023.95 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A span for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        // Rounding comes before choosing: 119.6 s are 2 min 0 s, and never 120 s.
        _ if seconds < 10.0 => format!("{:.1} s", seconds.max(0.0)),
        0..120 => format!("{whole} s"),
        120..7_200 => format!("{} min {} s", whole / 60, whole % 60),
        7_200..172_800 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} days", whole / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_columns_two_spaces_apart() {
        let rows = vec![
            vec!["a".to_owned(), "long cell".to_owned()],
            vec!["longer".to_owned(), "b".to_owned()],
        ];
        assert_eq!(
            table(&["ONE", "TWO"], rows),
            "ONE     TWO\na       long cell\nlonger  b"
        );
    }

    #[test]
    fn tables_without_rows_keep_their_header() {
        assert_eq!(table(&["ONE", "TWO"], Vec::new()), "ONE  TWO");
    }

    #[test]
    fn wide_characters_keep_columns_straight() {
        let rows = vec![
            vec!["日本".to_owned(), "x".to_owned()],
            vec!["abcd".to_owned(), "y".to_owned()],
        ];
        assert_eq!(table(&[], rows), "日本  x\nabcd  y");
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable("plain ünïcode"), "plain ünïcode");
        assert_eq!(
            printable("paid\u{202e}001\u{2028}x"),
            "paid\\u{202e}001\\u{2028}x"
        );
        assert_eq!(
            table(&[], vec![vec!["a\nb".to_owned(), "c".to_owned()]]),
            "a\\nb  c"
        );
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(counted(1, "event"), "1 event");
        assert_eq!(counted(0, "event"), "0 events");
        assert_eq!(counted(1_234, "event"), "1,234 events");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(1_048_570), "1.0 MiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
        assert_eq!(span(0.04), "0.0 s");
        assert_eq!(span(9.94), "9.9 s");
        assert_eq!(span(45.2), "45 s");
        assert_eq!(span(200.0), "3 min 20 s");
        assert_eq!(span(7_500.0), "2 h 5 min");
        assert_eq!(span(400_000.0), "4 days");
    }
}
