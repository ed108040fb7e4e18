//! The bytes of a blob, over as many connections as it takes.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use tokio::time::timeout;

use super::{Client, Error};
use crate::oci::Descriptor;

/// How long a body may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How often a broken body is resumed without a byte of progress in between.
const RESUMES_MAX: u32 = 4;

/// The bytes of a blob, in order and each once.
///
/// When a connection breaks or falls silent, the stream asks for the rest, from whichever endpoint
/// has it. Endpoints that ignore the range send everything, and the known part is skipped.
pub struct BlobStream {
    client: Arc<Client>,
    descriptor: Descriptor,
    /// How many bytes of the blob were handed out or were there before.
    offset: u64,
    body: Option<Incoming>,
    /// How many bytes to drop before the next one that is new.
    skip: u64,
    resumes: u32,
}

impl BlobStream {
    pub(super) fn new(client: Arc<Client>, descriptor: Descriptor, offset: u64) -> Self {
        Self { client, descriptor, offset, body: None, skip: 0, resumes: 0 }
    }

    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    ///
    /// No endpoint gives the rest, or the blob is longer than its descriptor says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.offset < self.descriptor.size {
            match self.step().await {
                Ok(Some(bytes)) => {
                    self.resumes = 0;
                    self.offset += bytes.len() as u64;
                    if self.offset > self.descriptor.size {
                        return Err(self.protocol("the blob is longer than its descriptor says"));
                    }
                    return Ok(Some(bytes));
                }
                Ok(None) => {}
                Err(error) => {
                    self.body = None;
                    if !error.is_passing() || self.resumes == RESUMES_MAX {
                        return Err(error);
                    }
                    self.resumes += 1;
                    let (digest, offset) = (&self.descriptor.digest, self.offset);
                    tracing::info!(%digest, offset, error = %sys::error::Chain(&error), "resume");
                    tokio::time::sleep(Duration::from_millis(100) * 2u32.pow(self.resumes)).await;
                }
            }
        }
        Ok(None)
    }

    /// Opens the body, or takes its next part; `None` when there is nothing new in it.
    async fn step(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(body) = &mut self.body else {
            let (body, from) = self.client.open_blob(&self.descriptor, self.offset).await?;
            self.skip = self.offset - from;
            self.body = Some(body);
            return Ok(None);
        };
        let what = || self.descriptor.digest.to_string();
        let host = || self.client.reference().host().to_owned();
        match timeout(SILENCE_MAX, body.frame()).await {
            Err(_) => {
                let seconds = SILENCE_MAX.as_secs();
                Err(Error::Silent { what: what(), host: host(), seconds })
            }
            Ok(Some(Err(error))) => {
                Err(Error::Connection { what: what(), host: host(), source: error.into() })
            }
            Ok(None) => {
                let source = format!("the blob ends after {} bytes", self.offset).into();
                Err(Error::Connection { what: what(), host: host(), source })
            }
            Ok(Some(Ok(frame))) => {
                let Ok(mut bytes) = frame.into_data() else { return Ok(None) };
                let skipped = self.skip.min(bytes.len() as u64);
                self.skip -= skipped;
                let bytes = bytes.split_off(usize::try_from(skipped).expect("at most a length"));
                Ok((!bytes.is_empty()).then_some(bytes))
            }
        }
    }

    fn protocol(&self, problem: &str) -> Error {
        Error::Protocol {
            what: self.descriptor.digest.to_string(),
            host: self.client.reference().host().to_owned(),
            problem: problem.to_owned(),
        }
    }
}
