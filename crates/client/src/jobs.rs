//! Jobs of the server: migrations and checks, which are started, watched and stopped.

use std::time::Duration;

use sira_wire::job::{CheckRequest, Job, JobRequest, JobState, JobsAnswer, MigrateRequest};
use sira_wire::{EmptyRequest, VERSION};

use crate::{Client, ClientError};

/// How often a job is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(200);

impl Client {
    /// Starts to move the tensors whose keys match `pattern`, a glob in which `*` matches `/` too, from one backend to another. They are read and written
    /// meanwhile as always. What has moved was read back from the target, and its checksums compared, before it left the source. A job of the same words
    /// that was stopped or failed goes on where it was. With `dry_run`, what would move is only counted.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// let job = client.migrate("rocksdb", "object", "archive/*", false).await?;
    /// let job = client.wait_job(&job.id, |job| println!("{} of {} tensors", job.keys, job.keys_total)).await?;
    /// assert!(job.failures.is_empty() && job.error.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn migrate(&self, source: &str, target: &str, pattern: &str, dry_run: bool) -> Result<Job, ClientError> {
        let (source, target, pattern) = (source.to_owned(), target.to_owned(), pattern.to_owned());
        self.action("migrate", &MigrateRequest { v: VERSION, source, target, pattern, dry_run }).await
    }

    /// Starts to read every copy of the tensors whose keys start with `prefix`, and to hold it against its record. With `mend`, what is damaged or missing is
    /// written again from a copy that is good. Without a prefix, chunks that no record names are looked for as well, and removed by `mend`.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// let job = client.check("kv/", true).await?;
    /// for finding in client.wait_job(&job.id, |_| ()).await?.findings {
    ///     println!("{} in {}: {}, mended: {}", finding.key, finding.backend, finding.detail, finding.mended);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(&self, prefix: &str, mend: bool) -> Result<Job, ClientError> {
        self.action("check", &CheckRequest { v: VERSION, prefix: prefix.to_owned(), mend }).await
    }

    /// The jobs that run, and the last ones that ended, in the order in which they were started.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// for job in client.jobs().await? {
    ///     println!("{}: {:?}", job.id, job.state);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn jobs(&self) -> Result<Vec<Job>, ClientError> {
        Ok(self.action::<JobsAnswer>("jobs", &EmptyRequest { v: VERSION }).await?.jobs)
    }

    /// How far a job is.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// let job = client.job("0192f3a1b2c3d4e5f60718293a4b5c6d").await?;
    /// println!("{:?}, {} bytes of {}", job.state, job.bytes, job.bytes_total);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn job(&self, id: &str) -> Result<Job, ClientError> {
        self.action("job", &request(id)).await
    }

    /// Stops a job once what it has begun is done. Started again with the same words, it goes on where it was.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// println!("{:?}", client.stop_job("0192f3a1b2c3d4e5f60718293a4b5c6d").await?.state);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stop_job(&self, id: &str) -> Result<Job, ClientError> {
        self.action("job_stop", &request(id)).await
    }

    /// Waits until a job has ended, and tells how far it is meanwhile. Whoever stops waiting does not stop the job.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// let job = client.migrate("rocksdb", "object", "archive/*", false).await?;
    /// println!("{:?}", client.wait_job(&job.id, |_| ()).await?.state);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait_job(&self, id: &str, mut look: impl FnMut(&Job)) -> Result<Job, ClientError> {
        loop {
            let job = self.job(id).await?;
            look(&job);
            if job.state != JobState::Running {
                return Ok(job);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn request(id: &str) -> JobRequest {
    JobRequest { v: VERSION, id: id.to_owned() }
}
