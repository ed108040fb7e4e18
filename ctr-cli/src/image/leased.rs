//! Leases that keep what a command makes until something refers to it.

use proto::containerd::services::leases::v1::{CreateRequest, DeleteRequest};

use crate::{client::Client, names};

/// How long a lease lives when nobody deletes it.
const LIFETIME_SECONDS: i64 = 24 * 60 * 60;

/// The label that says when a lease ends.
pub(crate) const EXPIRE_LABEL: &str = "containerd.io/gc.expire";

/// A lease, and a client whose calls are made under it.
///
/// A command that is killed leaves the lease, which then expires.
#[derive(Clone)]
pub(crate) struct Lease {
    plain: Client,
    leased: Client,
    id: String,
}

impl Lease {
    /// Names a lease without creating it, so that creating can overlap other calls.
    pub(crate) fn named(client: &Client) -> anyhow::Result<Self> {
        let id = names::unique("ctr");
        Ok(Self { plain: client.clone(), leased: client.with_lease(&id)?, id })
    }

    /// Creates a lease.
    pub(crate) async fn create(client: &Client) -> anyhow::Result<Self> {
        let lease = Self::named(client)?;
        lease.register().await?;
        Ok(lease)
    }

    /// Makes the daemon know the lease.
    pub(crate) async fn register(&self) -> anyhow::Result<()> {
        let request = CreateRequest {
            id: self.id.clone(),
            labels: [(EXPIRE_LABEL.to_owned(), expiry(LIFETIME_SECONDS)?)].into(),
        };
        self.plain.leases().create(request).await?;
        Ok(())
    }

    /// The client that works under the lease.
    pub(crate) fn client(&self) -> &Client {
        &self.leased
    }

    /// Ends the lease.
    pub(crate) async fn delete(&self) -> anyhow::Result<()> {
        let request = DeleteRequest { id: self.id.clone(), sync: false };
        self.plain.leases().delete(request).await?;
        Ok(())
    }
}

/// The time in so many seconds, as the label has it.
///
/// # Errors
///
/// It is beyond the year 9999.
pub(crate) fn expiry(seconds: i64) -> anyhow::Result<String> {
    let end = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_secs(seconds))?;
    Ok(end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
