//! The version of the daemon.
//!
//! Clients compare the version with containerd's to know which API they may expect, so it starts
//! with the level of the API that is served; whose daemon it is stands behind the plus sign, where
//! semantic versioning has room for it.

use proto::containerd::services::version::v1::{VersionResponse, version_server};
use tonic::{Request, Response, Status};

/// The version that clients see.
pub const VERSION: &str = concat!("2.3.0+gantry.", env!("CARGO_PKG_VERSION"));

/// The revision that this program was built from, if the build was told.
pub const REVISION: &str = match option_env!("GANTRY_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct Version;

#[tonic::async_trait]
impl version_server::Version for Version {
    async fn version(&self, _request: Request<()>) -> Result<Response<VersionResponse>, Status> {
        let version = VersionResponse { version: VERSION.into(), revision: REVISION.into() };
        Ok(Response::new(version))
    }
}
