//! Uploads that are made to hurt the program that reads them.

/// How a component begins.
pub const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
/// The first bytes of a core module.
pub const CORE: &[u8] = b"\0asm\x01\0\0\0";
/// A component type that is nested in the one before it: an instance, and a component.
pub const INSTANCE_TYPE: u8 = 0x42;
/// See [`INSTANCE_TYPE`].
pub const COMPONENT_TYPE: u8 = 0x41;

/// A number in as few bytes as it takes.
pub fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits");
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return bytes;
        }
    }
}

/// A section.
pub fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

/// Types inside types, without an end.
fn nest(tag: u8, levels: usize) -> Vec<u8> {
    let mut content = leb(1);
    content.extend([tag, 1, 1].repeat(levels));
    content.push(0x7f);
    content
}

/// How many sections with this number a component has. Its parts are numbered in their order, so that
/// is the number of the next core module (1) or component (4).
pub fn sections_of(component: &[u8], id: u8) -> usize {
    let (mut count, mut rest) = (0, &component[COMPONENT.len()..]);
    while let Some((found, behind)) = rest.split_first() {
        let (mut length, mut digits) = (0, 0);
        loop {
            let digit = behind[digits];
            length |= usize::from(digit & 0x7f) << (7 * digits);
            digits += 1;
            if digit < 0x80 {
                break;
            }
        }
        count += usize::from(*found == id);
        rest = &behind[digits + length..];
    }
    count
}

/// A component, and an instance behind it of components of which each instantiates the one inside it
/// twice.
pub fn doubling_instances(component: &[u8], levels: usize) -> Vec<u8> {
    // Two instances of what came first, with no arguments.
    let twice = [2, 0, 0, 0, 0, 0, 0];
    let mut inner = [COMPONENT, &section(1, CORE), &section(2, &twice)].concat();
    for _ in 0..levels {
        inner = [COMPONENT, &section(4, &inner), &section(5, &twice)].concat();
    }
    let outermost = [&[1, 0][..], &leb(sections_of(component, 4)), &[0]].concat();
    [component, &section(4, &inner), &section(5, &outermost)].concat()
}

/// A component, and behind it core modules that nobody instantiates, each with this many globals.
pub fn idle_globals(component: &[u8], modules: usize, globals: usize) -> Vec<u8> {
    // A variable of 32 bits that begins with 0.
    let all = [leb(globals), [0x7f, 1, 0x41, 0, 0x0b].repeat(globals)].concat();
    let module = section(1, &[CORE, &section(6, &all)].concat());
    [component, &module.repeat(modules)].concat()
}

/// A component whose type section nests types so deeply.
pub fn nested_types(tag: u8, levels: usize) -> Vec<u8> {
    [COMPONENT, &section(7, &nest(tag, levels))].concat()
}

/// A custom section.
pub fn custom_section(name: &str, content: &[u8]) -> Vec<u8> {
    section(0, &[&leb(name.len()), name.as_bytes(), content].concat())
}

/// A core module with the same in the section that names its world.
pub fn nested_types_in_core(tag: u8, levels: usize) -> Vec<u8> {
    [
        CORE,
        &custom_section("component-type:hostile", &nested_types(tag, levels)),
    ]
    .concat()
}

/// Components inside components.
pub fn nested_components(levels: usize) -> Vec<u8> {
    // From the inside out: each length is part of the next.
    let mut lengths = vec![COMPONENT.len()];
    for level in 0..levels {
        lengths.push(COMPONENT.len() + 1 + leb(lengths[level]).len() + lengths[level]);
    }
    let mut bytes = COMPONENT.to_vec();
    // From the outside in: the sizes come before what they are of.
    for length in lengths[..levels].iter().rev() {
        bytes.push(4);
        bytes.extend(leb(*length));
        bytes.extend(COMPONENT);
    }
    bytes
}

/// A component with as many types, each a list of bytes.
pub fn many_types(count: usize) -> Vec<u8> {
    let content = [leb(count), [0x70, 0x7d].repeat(count)].concat();
    [COMPONENT, &section(7, &content)].concat()
}

/// A component with one type of as many members.
pub fn wide_type(members: usize) -> Vec<u8> {
    let content = [leb(1), vec![0x6f], leb(members), vec![0x7d; members]].concat();
    [COMPONENT, &section(7, &content)].concat()
}

/// A component with types each of which holds the one before it several times.
pub fn doubling_types(levels: usize, times: usize) -> Vec<u8> {
    let mut content = leb(levels);
    content.extend([0x6f, 1, 0x7d]);
    for level in 1..levels {
        content.push(0x6f);
        content.extend(leb(times));
        content.extend(leb(level - 1).repeat(times));
    }
    [COMPONENT, &section(7, &content)].concat()
}

/// A component of nothing but empty custom sections.
pub fn empty_sections(bytes: usize) -> Vec<u8> {
    [COMPONENT, &[0, 1, 0].repeat(bytes / 3)].concat()
}

/// A core module with one function whose blocks nest so deeply.
pub fn nested_blocks(levels: usize) -> Vec<u8> {
    let body = [vec![0], [0x02, 0x40].repeat(levels), vec![0x0b; levels + 1]].concat();
    let code = [leb(1), leb(body.len()), body].concat();
    [
        CORE,
        &section(1, &[1, 0x60, 0, 0]),
        &section(3, &[1, 0]),
        &section(10, &code),
    ]
    .concat()
}
