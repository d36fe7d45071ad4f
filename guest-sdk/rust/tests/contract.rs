//! The contracts that go into components are those in `wit/`.

use std::path::Path;

use wit_component::StringEncoding;
use wit_parser::Resolve;

#[test]
fn embedded_contract_is_that_of_the_wit_folder() {
    compare("projection", "src/contract.bin");
}

#[test]
fn embedded_contract_of_migrating_projections_is_that_of_the_wit_folder() {
    compare("migrating-projection", "src/migrating-contract.bin");
}

#[test]
fn embedded_contract_of_handlers_is_that_of_the_wit_folder() {
    compare("handler", "src/handler-contract.bin");
}

#[test]
fn embedded_contract_of_migrating_handlers_is_that_of_the_wit_folder() {
    compare("migrating-handler", "src/migrating-handler-contract.bin");
}

#[test]
fn embedded_contract_of_inboxes_is_that_of_the_wit_folder() {
    compare("with-inbox", "src/inbox-contract.bin");
}

/// With `FOLDSTREAM_WRITE_CONTRACT` set it writes the file instead of comparing.
fn compare(world: &str, file: &str) {
    let wit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit");
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit).expect("the contract is well-formed");
    let world = resolve
        .select_world(&[package], Some(world))
        .expect("it has a world of that name");
    let encoded = wit_component::metadata::encode(&resolve, world, StringEncoding::UTF8, None)
        .expect("it is encodable");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("FOLDSTREAM_WRITE_CONTRACT").is_some() {
        std::fs::write(&path, &encoded).expect("the file can be written");
    }
    assert!(
        std::fs::read(&path).is_ok_and(|embedded| embedded == encoded),
        "{file} is not the contract in wit/; run this test once with FOLDSTREAM_WRITE_CONTRACT=1, \
         and check the records in src/guest.rs, src/host.rs and src/event.rs against the change"
    );
}
