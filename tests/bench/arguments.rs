//! What a run of the bench measures, and how much of it.

use std::path::PathBuf;

/// The parts, in the order in which they run.
const PARTS: [&str; 12] = [
    "replay", "path", "lanes", "by-hand", "log", "latency", "deploy", "many", "reads", "swap",
    "disk", "handlers",
];

/// What the command line says.
pub struct Arguments {
    /// Events that a replay reads.
    pub events: usize,
    /// Numbers of customers, each measured on its own.
    pub customers: Vec<u32>,
    /// How often each measurement is made; the median counts.
    pub rounds: usize,
    /// Events per second of the live measurement, each measured on its own.
    pub rates: Vec<u64>,
    /// Seconds that each live measurement takes.
    pub seconds: u64,
    /// Deployments whose memory is measured.
    pub deployments: usize,
    /// Parts to run; all when empty.
    pub only: Vec<String>,
    /// Where the JSON goes.
    pub json: PathBuf,
    /// Measure nothing, and compare the runs in this folder.
    pub diff: Option<PathBuf>,
}

const USAGE: &str = "usage: make bench BENCH=\"[options]\"
  --events N        events of a replay (1000000)
  --customers N,N   numbers of customers (10000,1000000)
  --rounds N        rounds of each measurement, of which the median counts (3)
  --rates N,N       live events per second (1000,10000)
  --seconds N       length of each live measurement (10)
  --deployments N   idle deployments whose memory is measured (200)
  --only PART,PART  replay, path, lanes, by-hand, log, latency, deploy, many,
                    reads, swap, disk, handlers
  --json FILE       where the figures go (bench.json in the target folder)
  --diff FOLDER     measure nothing; compare before-1.json, after-1.json, … of a folder";

impl Arguments {
    /// Reads the command line.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let json = foldstream_tests::built()
            .parent()
            .expect("the target folder has a folder for each profile")
            .join("bench.json");
        let mut parsed = Self {
            events: 1_000_000,
            customers: vec![10_000, 1_000_000],
            rounds: 3,
            rates: vec![1_000, 10_000],
            seconds: 10,
            deployments: 200,
            only: Vec::new(),
            json,
            diff: None,
        };
        while let Some(word) = words.next() {
            // Cargo adds this one to every bench.
            if word == "--bench" {
                continue;
            }
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a value\n{USAGE}"))?;
            match word.as_str() {
                "--events" => parsed.events = number(&value)?,
                "--customers" => parsed.customers = numbers(&value)?,
                "--rounds" => parsed.rounds = number::<usize>(&value)?.max(1),
                "--rates" => parsed.rates = numbers(&value)?,
                "--seconds" => parsed.seconds = number(&value)?,
                "--deployments" => parsed.deployments = number(&value)?,
                "--only" => parsed.only = parts(&value)?,
                "--diff" => parsed.diff = Some(PathBuf::from(value)),
                "--json" => parsed.json = PathBuf::from(value),
                _ => return Err(format!("unknown option {word}\n{USAGE}")),
            }
        }
        Ok(parsed)
    }

    /// Whether a part is to run.
    pub fn runs(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{text} is no number\n{USAGE}"))
}

fn numbers<T: std::str::FromStr>(text: &str) -> Result<Vec<T>, String> {
    text.split(',').map(number).collect()
}

fn parts(text: &str) -> Result<Vec<String>, String> {
    let parts: Vec<String> = text.split(',').map(str::to_owned).collect();
    match parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
        Some(unknown) => Err(format!("unknown part {unknown}\n{USAGE}")),
        None => Ok(parts),
    }
}
