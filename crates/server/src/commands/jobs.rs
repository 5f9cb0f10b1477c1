//! `sira migrate`, `sira check`, `sira jobs`: long work of the server, started, watched and stopped.

use sira_client::{Client, Job, JobState, Problem, Work};

use super::table::{self, Column};
use super::{Server, note, plural, print, print_line};
use crate::Failure;
use crate::cli::{CheckArgs, JobsCommand, MigrateArgs};
use crate::config::units::short_size;
use crate::progress::Progress;

/// `sira migrate`.
pub(crate) async fn migrate(server: Server<'_>, args: MigrateArgs) -> Result<(), Failure> {
    let client = server.connect().await?;
    let job = client.migrate(&args.source, &args.target, &args.pattern, args.dry_run).await?;
    started(&client, job, args.detach, args.json).await
}

/// `sira check`.
pub(crate) async fn check(server: Server<'_>, args: CheckArgs) -> Result<(), Failure> {
    let client = server.connect().await?;
    let job = client.check(&args.prefix, args.mend).await?;
    started(&client, job, args.detach, args.json).await
}

/// `sira jobs`.
pub(crate) async fn jobs(server: Server<'_>, command: JobsCommand) -> Result<(), Failure> {
    let client = server.connect().await?;
    match command {
        JobsCommand::Ls { json } => {
            let jobs = client.jobs().await?;
            if json { jobs.iter().try_for_each(print_line) } else { print(&table(&jobs)) }
        }
        JobsCommand::Watch { id, json } => ended(&watch(&client, &id, json).await?, json),
        JobsCommand::Stop { id, json } => {
            let job = client.stop_job(&id).await?;
            if json { print_line(&job) } else { print(&text(&job)) }
        }
    }
}

/// Watches a job that was started here. Ctrl-C stops it: whoever starts it and goes wants it no more.
async fn started(client: &Client, job: Job, detach: bool, json: bool) -> Result<(), Failure> {
    if detach {
        return if json { print_line(&job) } else { print(&format!("job {}", job.id)) };
    }
    let id = job.id.clone();
    tokio::select! {
        ended_job = watch(client, &id, json) => ended(&ended_job?, json),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|error| Failure::with("signals", error))?;
            note(&format!("stopping job {id}"));
            let job = client.stop_job(&id).await?;
            if json { print_line(&job)? } else { print(&text(&job))? }
            Err(Failure::Failed("stopped; the same command goes on where it was".into()))
        }
    }
}

async fn watch(client: &Client, id: &str, json: bool) -> Result<Job, Failure> {
    let mut bar = None;
    let job = client
        .wait_job(id, |job| {
            // A check is for as many bytes as its copies have, which nobody has counted.
            let total = Some(job.bytes_total).filter(|&total| total > 0);
            if job.state == JobState::Running {
                let bar = bar.get_or_insert_with(|| (total, Progress::bytes(total, !json)));
                if bar.0 != total {
                    *bar = (total, Progress::bytes(total, !json));
                }
                bar.1.set(job.bytes);
                bar.1.message(&format!("{} of {}", job.keys, plural(job.keys_total, "tensor")));
            }
        })
        .await?;
    Ok(job)
}

/// Says how a job ended; what is not as it should be is a failure.
fn ended(job: &Job, json: bool) -> Result<(), Failure> {
    if json {
        print_line(job)?;
    } else {
        job.findings.iter().for_each(|finding| {
            let key = if finding.key.is_empty() { "no key" } else { &finding.key };
            let mended = if finding.mended { "mended" } else { "not mended" };
            note(&format!("{key} in {}, {}: {}; {mended}", finding.backend, problem(finding.problem), finding.detail));
        });
        job.failures.iter().for_each(|failed| note(&format!("{}: {}", failed.key, failed.error)));
        print(&text(job))?;
    }
    let unmended = job.found.saturating_sub(job.mended);
    match (&job.error, job.state) {
        (Some(error), _) => Err(Failure::Failed(format!("{error}; the same command goes on where it was"))),
        (None, JobState::Stopped) => Err(Failure::Failed("stopped; the same command goes on where it was".into())),
        _ if job.failed > 0 => Err(Failure::Failed(format!("{} could not be moved", plural(job.failed, "tensor")))),
        _ if unmended > 0 => Err(Failure::Failed(format!("{} found that {} not mended", plural(unmended, "problem"), are(unmended)))),
        _ => Ok(()),
    }
}

fn are(count: u64) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

fn problem(problem: Problem) -> &'static str {
    match problem {
        Problem::Missing => "missing",
        Problem::Damaged => "damaged",
        Problem::Lacking => "no copy",
        Problem::Orphan => "orphan",
        Problem::Unreachable => "unreachable",
    }
}

fn state(job: &Job) -> &'static str {
    match job.state {
        JobState::Running => "running",
        JobState::Stopped => "stopped",
        JobState::Failed => "failed",
        JobState::Done => "done",
    }
}

fn what(work: &Work) -> String {
    match work {
        Work::Migrate { source, target, pattern, dry_run } => {
            format!("migrate {source} {target} {pattern}{}", if *dry_run { " --dry-run" } else { "" })
        }
        Work::Check { prefix, mend } => {
            ["check", prefix, if *mend { "--mend" } else { "" }].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
        }
    }
}

/// What became of a job, in a line, and what else there is to say of it in more.
fn text(job: &Job) -> String {
    let size = short_size;
    let mut lines = vec![match &job.work {
        Work::Migrate { source, target, dry_run: true, .. } => {
            format!("would move {} ({}) from {source} to {target}", plural(job.keys_total, "tensor"), size(job.bytes_total))
        }
        Work::Migrate { source, target, .. } => {
            let (keys, total) = (plural(job.keys, "tensor"), job.keys_total);
            format!("moved {keys} of {total} ({}) from {source} to {target}, read back and compared: {}", size(job.bytes), state(job))
        }
        Work::Check { .. } => {
            let keys = plural(job.keys, "tensor");
            format!(
                "checked {keys} ({} read), found {}, mended {}: {}",
                size(job.bytes),
                plural(job.found, "problem"),
                job.mended,
                state(job)
            )
        }
    }];
    if job.inline > 0 {
        lines.push(format!("{} of 32 KiB and less stay: they lie in their records", plural(job.inline, "tensor")));
    }
    if job.changed > 0 {
        lines.push(format!("{} changed meanwhile and stay where their writer put them", plural(job.changed, "tensor")));
    }
    lines.join("\n")
}

fn table(jobs: &[Job]) -> String {
    let columns = [
        Column("ID", false),
        Column("STATE", false),
        Column("WORK", false),
        Column("TENSORS", true),
        Column("OF", true),
        Column("SIZE", true),
        Column("FAILED", true),
        Column("FOUND", true),
        Column("MENDED", true),
    ];
    let row = |job: &Job| {
        let (keys, total, size) = (job.keys.to_string(), job.keys_total.to_string(), short_size(job.bytes));
        let rest = [job.failed, job.found, job.mended].map(|count| count.to_string());
        [vec![job.id.clone(), state(job).to_owned(), what(&job.work), keys, total, size], rest.to_vec()].concat()
    };
    table::lay_out(&columns, &jobs.iter().map(row).collect::<Vec<_>>(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(work: Work, change: impl FnOnce(&mut serde_json::Value)) -> Job {
        let mut json = serde_json::to_value(&work).unwrap();
        let rest = serde_json::json!({"id": "7", "state": "done", "started_ms": 1, "keys_total": 3, "bytes_total": 3072, "keys": 2, "bytes": 2048});
        json.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        change(&mut json);
        serde_json::from_value(json).unwrap()
    }

    fn migration(dry_run: bool) -> Work {
        Work::Migrate { source: "rocksdb".into(), target: "object".into(), pattern: "kv/*".into(), dry_run }
    }

    #[test]
    fn what_became_of_a_job_is_said() {
        assert_eq!(text(&job(migration(true), |_| ())), "would move 3 tensors (3.0 KiB) from rocksdb to object");
        let moved = job(migration(false), |json| (json["inline"], json["changed"]) = (1.into(), 1.into()));
        let expected = "moved 2 tensors of 3 (2.0 KiB) from rocksdb to object, read back and compared: done\n\
                        1 tensor of 32 KiB and less stay: they lie in their records\n1 tensor changed meanwhile and stay where their writer put them";
        assert_eq!(text(&moved), expected);
        assert!(ended(&moved, false).is_ok());
        let failed = job(migration(false), |json| (json["state"], json["error"]) = ("failed".into(), "SIRA_BACKEND: gone".into()));
        assert_eq!(ended(&failed, true).unwrap_err().to_string(), "SIRA_BACKEND: gone; the same command goes on where it was");
        let check = Work::Check { prefix: String::new(), mend: true };
        let left = job(check, |json| (json["found"], json["mended"]) = (3.into(), 2.into()));
        assert_eq!(ended(&left, true).unwrap_err().to_string(), "1 problem found that is not mended");
        assert!(table(&[left]).contains("check --mend"));
    }
}
