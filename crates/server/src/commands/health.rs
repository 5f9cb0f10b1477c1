//! `sira health`: what a container's health check runs.

use std::time::Duration;

use serde_json::json;

use super::{Server, print, print_line};
use crate::Failure;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// `sira health`: fails unless the server is healthy or degraded.
pub(crate) async fn health(server: Server<'_>, json: bool) -> Result<(), Failure> {
    let asked = tokio::time::timeout(PATIENCE, async { Ok::<_, Failure>(server.connect().await?.health().await?) }).await;
    let health = match asked {
        Ok(Ok(health)) => health,
        Ok(Err(failure @ Failure::Usage(_))) => return Err(failure),
        Ok(Err(failure)) => return unreachable(json, failure.to_string()),
        Err(_) => return unreachable(json, format!("{} has not answered within {} s", server.url, PATIENCE.as_secs())),
    };
    if json {
        print_line(&health)?;
    } else {
        let backends = health.backends.iter().map(|(name, state)| format!("\n{name}: {state}")).collect::<String>();
        print(&format!("{}, version {}{backends}", health.status, health.version))?;
    }
    match health.status.as_str() {
        "healthy" | "degraded" => Ok(()),
        other => Err(Failure::Failed(format!("the server is {other}"))),
    }
}

fn unreachable(json: bool, reason: String) -> Result<(), Failure> {
    if json {
        print_line(&json!({ "status": format!("unreachable: {reason}") }))?;
    }
    Err(Failure::Failed(reason))
}
