//! The contract that goes into components is the one in `wit/`.

use wit_component::StringEncoding;
use wit_parser::Resolve;

/// With `FOLDSTREAM_WRITE_CONTRACT` set it writes the file instead of comparing.
#[test]
fn embedded_contract_is_that_of_the_wit_folder() {
    let wit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit");
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit).expect("the contract is well-formed");
    let world = resolve.select_world(&[package], Some("projection")).expect("it has a world `projection`");
    let encoded =
        wit_component::metadata::encode(&resolve, world, StringEncoding::UTF8, None).expect("it is encodable");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/contract.bin");
    if std::env::var_os("FOLDSTREAM_WRITE_CONTRACT").is_some() {
        std::fs::write(file, &encoded).expect("the file can be written");
    }
    assert!(
        std::fs::read(file).is_ok_and(|embedded| embedded == encoded),
        "src/contract.bin is not the contract in wit/; run this test once with FOLDSTREAM_WRITE_CONTRACT=1, and check \
         the records in src/guest.rs, src/host.rs and src/event.rs against the change"
    );
}
