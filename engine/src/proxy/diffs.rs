//! Layers that a plugin applies and makes, over containerd's diff service.

use proto::containerd::services::diff::v1::{
    ApplyRequest, ApplyResponse, DiffRequest, DiffResponse, diff_client::DiffClient,
};

use super::Plugin;
use crate::{error::Error, namespace::Scope};

impl Plugin {
    /// Has the plugin apply a layer.
    ///
    /// # Errors
    ///
    /// What it says; `NotImplemented` if it does not know this kind of layer.
    pub(crate) async fn apply(
        &self,
        scope: &Scope,
        request: ApplyRequest,
    ) -> Result<ApplyResponse, Error> {
        let request = self.request(scope.namespace.as_str(), request);
        let mut client = DiffClient::new(self.channel.clone());
        let within = self.deadlines.layer;
        let answer = tokio::time::timeout(within, client.apply(request)).await;
        Ok(self.outcome(within, answer)?.into_inner())
    }

    /// Has the plugin make a layer.
    ///
    /// # Errors
    ///
    /// What it says; `NotImplemented` if it does not know this kind of layer.
    pub(crate) async fn diff(
        &self,
        scope: &Scope,
        request: DiffRequest,
    ) -> Result<DiffResponse, Error> {
        let request = self.request(scope.namespace.as_str(), request);
        let mut client = DiffClient::new(self.channel.clone());
        let within = self.deadlines.layer;
        let answer = tokio::time::timeout(within, client.diff(request)).await;
        Ok(self.outcome(within, answer)?.into_inner())
    }
}
