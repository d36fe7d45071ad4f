//! Draws valid WebAssembly: for each seed of 8 bytes on standard input, it answers with one byte (0
//! for a component, 1 for a core module), the length in 4 bytes, and the WebAssembly. Numbers are
//! little endian. The same seed gives the same answer; nothing has length 0.

use std::io::{self, Read, Write};

use arbitrary::{Arbitrary as _, Unstructured};
use wasm_smith::{Component, Config, Module};

/// Random bytes from which one is made.
const RANDOM_BYTES: std::ops::Range<usize> = 256..32_768;

fn main() -> io::Result<()> {
    // A seed from which none can be made is answered with nothing.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut seed = [0; 8];
    while let Ok(()) = input.read_exact(&mut seed) {
        let mut rng = fastrand::Rng::with_seed(u64::from_le_bytes(seed));
        let kind = rng.u8(0..2);
        let mut random = vec![0; rng.usize(RANDOM_BYTES)];
        rng.fill(&mut random);
        let drawn = std::panic::catch_unwind(|| draw(kind, &random));
        let drawn = drawn.ok().and_then(Result::ok).unwrap_or_default();
        let length = u32::try_from(drawn.len()).expect("it is made of few bytes");
        output.write_all(&[kind])?;
        output.write_all(&length.to_le_bytes())?;
        output.write_all(&drawn)?;
        output.flush()?;
    }
    Ok(())
}

fn draw(kind: u8, random: &[u8]) -> arbitrary::Result<Vec<u8>> {
    let mut random = Unstructured::new(random);
    let swarm = Config::arbitrary(&mut random)?;
    // What no host accepts would be refused at its first sight.
    let config = Config {
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        threads_enabled: false,
        ..swarm
    };
    if kind == 1 {
        return Ok(Module::new(config, &mut random)?.to_bytes());
    }
    let usual = Config::default();
    let config = Config {
        max_components: usual.max_components,
        max_instances: usual.max_instances,
        max_modules: usual.max_modules,
        max_values: 0,
        ..config
    };
    Ok(Component::new(config, &mut random)?.to_bytes())
}
