//! Configuration: the file up to the first zero byte, then the value of a variable of the environment.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira::config::{Config, Flags, Sources};

fuzz_target!(|text: &str| {
    let (file, rules) = text.split_once('\0').unwrap_or((text, ""));
    let environment = vec![("SIRA_STORAGE__ROUTING__RULES".to_owned(), rules.to_owned())];
    let sources = Sources { file: Some(("sira.toml", file)), environment, flags: Flags::default(), machine_memory: Some(1 << 33) };
    sira_fuzz::bounded(text.len(), || {
        let _ = Config::load(&sources);
    });
});
