//! The tenants, and in whose name a call is made.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use crate::identifier::{self, ParseIdentifierError};

/// The name of a tenant: clients of one namespace do not see the objects of another.
///
/// Always an [`identifier`], because parsing is the only way to get one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = ParseIdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        identifier::check(text)?;
        Ok(Self(text.into()))
    }
}

impl Borrow<str> for Namespace {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// In whose name a call is made: the namespace, and the lease that what the call makes is added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The tenant.
    pub namespace: Namespace,
    /// The lease by its name; it must exist when something is added to it.
    pub lease: Option<String>,
}

impl Scope {
    /// A scope without a lease.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, lease: None }
    }
}
