//! The suite over chains: together, stages must keep what each one keeps.

use sira_codec::conformance::check_chain;

#[test]
fn none() {
    check_chain("none");
}

#[test]
fn planes() {
    check_chain("planes");
}

#[test]
fn planes_and_lz4() {
    check_chain("planes+lz4");
}

#[test]
fn planes_and_zstd() {
    check_chain("planes+zstd");
}

#[test]
fn planes_and_gzip() {
    check_chain("planes+planes+gzip:1");
}

#[test]
fn quantised() {
    check_chain("int8:group=16");
    check_chain("int4");
    check_chain("fp8");
}

#[test]
fn kvq() {
    check_chain("kvq:near-lossless:sinks=0");
    check_chain("kvq:rate=3:window=5");
}

#[test]
fn planes_and_float_rans() {
    check_chain("planes+float-rans");
}
