//! Sound components with sections behind them that are valid and that nobody needs: they pass every
//! check of the format, so it is their number and size that a host has to survive.

use fastrand::Rng;

use crate::hostile::{
    COMPONENT, CORE, custom_section, doubling_instances, leb, section, sections_of,
};

/// Most sections behind a component.
const SECTIONS_MAX: usize = 4;
/// Largest number of items of one kind, as a power of two. Most numbers are small, so that many
/// uploads can be tried in a minute.
const ITEMS_BITS: u32 = 16;
/// The same for functions, which take most time to compile.
const FUNCTIONS_BITS: u32 = 10;
/// The same for copies of a core module, and for its instances, of which a host allows 128.
const COPIES_BITS: u32 = 6;
const INSTANCES_BITS: u32 = 8;
/// Most bytes of the copies of one module.
const BYTES_MAX: usize = 12 << 20;
/// Largest custom section, as a power of two, in bytes.
const CUSTOM_BITS: u32 = 20;
/// Deepest nesting of components that instantiate the one inside twice. From 7 on they are more
/// than a host allows.
const DOUBLING_MAX: usize = 20;

/// A sound component, and strange sections behind it.
pub fn behind(rng: &mut Rng, component: &[u8]) -> Vec<u8> {
    let mut bytes = component.to_vec();
    for _ in 0..rng.usize(1..=SECTIONS_MAX) {
        match rng.u8(0..8) {
            0..=4 => {
                let module = section(1, &core(rng));
                // The first of them.
                let number = sections_of(&bytes, 1);
                let copies = few(rng, COPIES_BITS).min(BYTES_MAX / module.len());
                bytes.extend(module.repeat(copies.max(1)));
                if rng.u8(0..3) == 0 {
                    // Without arguments.
                    let instance = [&[0][..], &leb(number), &[0]].concat();
                    bytes.extend(section(2, &vector(few(rng, INSTANCES_BITS), &instance)));
                }
            }
            5 => bytes.extend(section(4, &[COMPONENT, &section(1, &core(rng))].concat())),
            6 => bytes = doubling_instances(&bytes, rng.usize(0..=DOUBLING_MAX)),
            _ => bytes.extend(custom_section(
                "strange",
                &vec![rng.u8(..); few(rng, CUSTOM_BITS)],
            )),
        }
    }
    bytes
}

/// A number of which small ones are as likely as large ones.
fn few(rng: &mut Rng, bits: u32) -> usize {
    let most = 1 << rng.u32(0..=bits);
    rng.usize(1..=most)
}

/// As many times the same, with their number before them.
fn vector(count: usize, item: &[u8]) -> Vec<u8> {
    [leb(count), item.repeat(count)].concat()
}

/// A valid core module with many or large items of some kinds, and none of others.
fn core(rng: &mut Rng) -> Vec<u8> {
    let mut some = |bits| if rng.u8(0..4) == 0 { few(rng, bits) } else { 0 };
    let (types, globals, exports) = (some(ITEMS_BITS), some(ITEMS_BITS), some(ITEMS_BITS));
    let (elements, data, pages) = (some(ITEMS_BITS), some(ITEMS_BITS), some(ITEMS_BITS));
    let (tables, rows) = (some(6), some(23));
    // Exports and elements need a function, which is number 0.
    let functions = some(FUNCTIONS_BITS).max(usize::from(exports + elements > 0));
    let names: Vec<u8> = (0..exports)
        .flat_map(|number| {
            let name = format!("{number:x}");
            [&leb(name.len()), name.as_bytes(), &[0, 0]].concat()
        })
        .collect();
    let mut bytes = CORE.to_vec();
    let mut add = |id, count: usize, items: Vec<u8>| {
        if count > 0 {
            bytes.extend(section(id, &[leb(count), items].concat()));
        }
    };
    // Of type 0, which takes and gives nothing; the others take a few numbers.
    let parameters = [0x60, 3, 0x7f, 0x7e, 0x7d, 0].repeat(types);
    add(1, 1 + types, [vec![0x60, 0, 0], parameters].concat());
    add(3, functions, vec![0; functions]);
    // Of functions, without a maximum.
    let table = [&[0x70, 0][..], &leb(rows.min(10_000_000))].concat();
    add(4, tables, table.repeat(tables));
    add(5, pages.min(1), [&[0][..], &leb(pages)].concat());
    // Variables of 32 bits that begin with 0.
    add(6, globals, [0x7f, 1, 0x41, 0, 0x0b].repeat(globals));
    add(7, exports, names);
    // Passive, each of function 0.
    add(9, elements, [1, 0, 1, 0].repeat(elements));
    add(10, functions, bodies(rng, functions));
    // Passive, each of two bytes.
    add(11, data, [1, 2, 7, 7].repeat(data));
    bytes
}

/// The bodies of functions: all empty, or the first with much in it.
fn bodies(rng: &mut Rng, count: usize) -> Vec<u8> {
    if count == 0 {
        return Vec::new();
    }
    let items = few(rng, 12);
    let first = match rng.u8(0..5) {
        // Blocks in blocks.
        0 => [
            &[0][..],
            &[0x02, 0x40].repeat(items),
            &vec![0x0b; items + 1],
        ]
        .concat(),
        // Variables of 64 bits.
        1 => [&[1][..], &leb(items * 12), &[0x7e, 0x0b]].concat(),
        // A block that is left by a table of ways.
        2 => [
            &[0, 0x02, 0x40, 0x41, 0, 0x0e][..],
            &vector(items, &[0]),
            &[0, 0x0b, 0x0b],
        ]
        .concat(),
        // Constants that nobody takes.
        3 => [&[0][..], &[0x41, 7, 0x1a].repeat(items), &[0x0b]].concat(),
        _ => vec![0, 0x0b],
    };
    let empty = [2, 0, 0x0b].repeat(count - 1);
    [leb(first.len()), first, empty].concat()
}
