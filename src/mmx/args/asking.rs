//! How models are asked over a server, and a server as a model that answers chats.

use std::time::Duration;

use mmx_data::asking::{Chat, Refused, Retries};
use mmx_hub::chat::ChatServer;
use serde_json::Value;

use super::values;
use crate::error::{Error, Result};

/// The options about requests to servers.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct AskingArgs {
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = values::at_least_one)]
    pub(crate) parallel: usize,
    /// Times that a request is asked again where the server is busy, broken or away
    #[arg(long, value_name = "N", default_value_t = Retries::default().count)]
    retries: usize,
    /// Seconds before the second time; doubled each time, at most 60
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = values::factor)]
    backoff: f64,
    /// Seconds that an answer may take
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

impl AskingArgs {
    /// The time that an answer may take.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// How often a request is asked again.
    ///
    /// # Errors
    /// Seconds beyond what can be waited for.
    pub(crate) fn retries(&self) -> Result<Retries> {
        let first = Duration::try_from_secs_f64(self.backoff)
            .map_err(|_| Error::usage("--backoff: expected seconds"))?;
        Ok(Retries { count: self.retries, first, ..Retries::default() })
    }
}

/// A server as a model that answers chats.
pub(crate) struct Asked(pub(crate) ChatServer);

impl Chat for Asked {
    fn ask(&self, body: &Value) -> std::result::Result<Value, Refused> {
        self.0.ask(body).map_err(|refusal| Refused {
            why: refusal.why,
            again: refusal.again,
            after: refusal.after,
        })
    }
}
