//! Which file of a group gets which value.
//!
//! Everything here is decided without looking at a group. What the kernel answers is provided
//! for by [`OnError`], which is why no old value has to be read first.
//!
//! Sources: the kernel's `admin-guide/cgroup-v1` and `cgroup-v2.rst`; the conversions from v1 to
//! v2 values are runc's (opencontainers/cgroups, `fs2`).

mod v1;
mod v2;

pub(super) use v1::v1;
pub(super) use v2::{swap, unified, v2, weight};

use std::borrow::Cow;

use crate::spec::resources::{LinuxHugepageLimit, LinuxMemory, LinuxRdma, LinuxResources};

/// A value for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) file: Cow<'static, str>,
    pub(super) value: String,
    pub(super) on_error: OnError,
}

/// What to do if the kernel refuses a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OnError {
    /// Give up.
    Fail,
    /// If the file does not exist, go on: the kernel lacks an optional part.
    SkipMissing,
    /// If it contradicts the present value of another file (`EINVAL`), try again after the rest.
    Defer,
    /// Both.
    DeferOrSkipMissing,
    /// If the file does not exist, write another one.
    Else(Box<Write>),
}

impl Write {
    fn new(file: impl Into<Cow<'static, str>>, value: impl ToString) -> Self {
        Self { file: file.into(), value: value.to_string(), on_error: OnError::Fail }
    }

    fn on_error(self, on_error: OnError) -> Self {
        Self { on_error, ..self }
    }
}

/// Why resources are refused, in words that name the field.
pub(super) type Refusal = String;

/// A limit that is set: 0 means "as it is".
pub(super) fn set(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

/// The refusal of memory limits below the present use, if they ask for that check.
pub(super) fn refuse_below_usage(memory: &LinuxMemory, usage: u64) -> Result<(), Refusal> {
    if memory.check_before_update != Some(true) {
        return Ok(());
    }
    let below =
        |limit: Option<i64>| limit.filter(|limit| *limit > 0 && limit.cast_unsigned() <= usage);
    if let Some(limit) = below(memory.swap) {
        return Err(format!("rejecting memory+swap limit {limit} <= usage {usage}"));
    }
    if let Some(limit) = below(memory.limit) {
        return Err(format!("rejecting memory limit {limit} <= usage {usage}"));
    }
    Ok(())
}

/// `pids.max`; 0 is not "no limit" since runc 1.4, but systemd cannot have 0, so it is 1.
fn pids(resources: &LinuxResources) -> Option<Write> {
    let limit = resources.pids.as_ref()?.limit?;
    Some(match limit {
        ..0 => Write::new("pids.max", "max"),
        0 => Write::new("pids.max", 1),
        _ => Write::new("pids.max", limit),
    })
}

/// Huge page limits, by fault and by reservation, which older kernels do not have.
fn hugepages(limit: &LinuxHugepageLimit, suffix: &str) -> Result<[Write; 2], Refusal> {
    let LinuxHugepageLimit { page_size, limit } = limit;
    if page_size.is_empty() || !page_size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(format!("invalid hugepage size {page_size:?}"));
    }
    let fault = Write::new(format!("hugetlb.{page_size}.{suffix}"), limit);
    let reservation = Write::new(format!("hugetlb.{page_size}.rsvd.{suffix}"), limit);
    Ok([fault, reservation.on_error(OnError::SkipMissing)])
}

fn rdma((device, limits): (&String, &LinuxRdma)) -> Write {
    let mut value = device.clone();
    if let Some(handles) = limits.hca_handles {
        value += &format!(" hca_handle={handles}");
    }
    if let Some(objects) = limits.hca_objects {
        value += &format!(" hca_object={objects}");
    }
    Write::new("rdma.max", value)
}
