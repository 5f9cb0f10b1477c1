//! Power cuts: a file system of its own, a writer that reports what was acknowledged, and the disk as it was at one moment.
//!
//! For each cut, an ext4 image on a tmpfs is mounted, a process writes to it until it is stopped in the middle of its work, and the image is
//! copied: what the kernel has not written yet is not in it, as after a power cut. Then the process is killed, and two things are
//! checked: the folder it leaves (`kill -9`), and the copy (power loss). Nothing that was acknowledged may be missing where it was
//! promised, and nothing may be torn anywhere. A kill alone proves nothing about syncs: the kernel still has everything.
//!
//! The last subject forgets a sync on purpose, and must be caught.
//!
//! `SIRA_POWER_CUTS` cuts each (10), from number `SIRA_POWER_FROM` (0) on; `SIRA_POWER_SUBJECT` names one alone. A cut's number decides what is
//! written and after how many acknowledgements it comes; the exact moment is the machine's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "it reports to whoever runs it, and to the process that started it")]

mod image;
mod subjects;
mod writer;

use std::path::Path;

use image::{Image, Ram};
use subjects::{Promise, SUBJECTS, open};
use writer::{Acknowledged, Writer};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

fn main() {
    if let Ok(folder) = std::env::var(writer::FOLDER) {
        return writer::run(Path::new(&folder));
    }
    // As other tests: a filter that does not name this one means that it is not asked for.
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if std::env::args().any(|argument| argument == "--list")
        || !filters.is_empty() && !filters.iter().any(|name| "power".contains(name.as_str()))
    {
        return;
    }
    let ram = match Ram::mount() {
        Ok(ram) => ram,
        Err(why) => return println!("POWER CUTS NOT TRIED: an image cannot be mounted here: {why}"),
    };
    let (from, cuts) = (number("SIRA_POWER_FROM", 0), number("SIRA_POWER_CUTS", 10));
    let only = std::env::var("SIRA_POWER_SUBJECT").ok();
    let mut failures = Vec::new();
    for (subject, promise) in SUBJECTS.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name)) {
        let (mut acknowledged, mut found) = (0, Vec::new());
        for cut in from..from + cuts {
            let (count, wrong) = try_cut(&ram, subject, *promise, cut);
            acknowledged += count;
            found.extend(wrong.into_iter().map(|wrong| format!("{subject}, cut {cut}: {wrong}")));
        }
        println!("power: {subject}: {cuts} cuts, {acknowledged} acknowledged writes, {} found wrong", found.len());
        match promise {
            Promise::Planted if found.is_empty() => failures.push(format!("{subject}: a loss planted on purpose was not found")),
            Promise::Planted => println!("power: as it must, the planted loss was found: {}", found[0]),
            _ => failures.extend(found),
        }
    }
    drop(ram);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// One cut: how many writes were acknowledged, and what was found wrong.
fn try_cut(ram: &Ram, subject: &str, promise: Promise, cut: u64) -> (usize, Vec<String>) {
    let image = Image::create(ram, "disk");
    let mounted = image.mount("now");
    let mut writer = Writer::start(subject, mounted.path(), cut);
    writer.wait();
    writer.stop();
    let copy = image.copy("cut");
    let acknowledged = writer.kill();
    let mut wrong = Vec::new();
    let mut look = |what: &str, folder: &Path, kept: bool| {
        wrong.extend(verify(subject, folder, &acknowledged, kept).into_iter().map(|wrong| format!("{what}: {wrong}")));
    };
    look("after the kill", mounted.path(), promise != Promise::Nothing);
    drop(mounted);
    let after = copy.mount("after");
    look("after the power cut", after.path(), matches!(promise, Promise::PowerLoss | Promise::Planted));
    (acknowledged.count, wrong)
}

/// Opens what lies in `folder` and reads every key.
fn verify(subject: &str, folder: &Path, acknowledged: &Acknowledged, kept: bool) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let wrong = runtime.block_on(async {
        let opened = match open(subject, folder).await {
            Ok(opened) => opened,
            Err(error) => return vec![format!("it does not start: {error}")],
        };
        let mut wrong = Vec::new();
        for (key, told) in acknowledged.keys() {
            let found = match opened.get(&key).await {
                Ok(None) => None,
                Ok(Some(value)) => match writer::version_of(&key, &value) {
                    Some(version) => Some(version),
                    None => {
                        wrong.push(format!("{key} is torn"));
                        continue;
                    }
                },
                Err(error) => {
                    wrong.push(format!("{key}: {error}"));
                    continue;
                }
            };
            // The write under way at the cut may be there or not.
            if kept && found < told {
                wrong.push(format!("{key}: write {told:?} was acknowledged, {found:?} is there"));
            }
        }
        wrong
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(10));
    wrong
}
