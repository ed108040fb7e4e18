//! What the daemon consists of.
//!
//! Clients decide by the list of plugins which snapshotters and runtimes they may name, so parts
//! of this program appear under the types and names that containerd gives their like. The list is
//! made once, when somebody asks for it: what is not in it is not served, and to see what the
//! kernel can do takes a while.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, LazyLock},
};

use prost_types::Any;
use proto::containerd::{
    services::introspection::v1::{
        self as api, PluginInfoRequest, PluginInfoResponse, PluginsRequest, PluginsResponse,
        ServerResponse, introspection_server,
    },
    types::{Platform, RuntimeRequest},
};
use tonic::{Request, Response, Status};

use super::{blocking, status, status::task_status};
use crate::{
    error::Error,
    filter::{Fields, Filter, value},
    runtime::Runtime,
};

/// The plugin that is asked what a runtime can do, by its type and its name.
pub const TASKS: (&str, &str) = ("io.containerd.runtime.v2", "task");

/// A part of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Plugin {
    /// The kind of part, such as `io.containerd.snapshotter.v1`.
    pub kind: &'static str,
    /// Which of its kind.
    pub id: String,
    /// The kinds it needs.
    pub requires: Vec<&'static str>,
    /// Whether it depends on the platform.
    pub has_platform: bool,
    /// The platform that it is for, if that is not this machine's.
    pub platform: Option<crate::platform::Platform>,
    /// What it tells about itself, such as `root`.
    pub exports: BTreeMap<String, String>,
    /// What it can do, such as `rebase`.
    pub capabilities: Vec<String>,
    /// Why it does not work here.
    pub init_error: Option<String>,
}

/// The service.
#[derive(Clone)]
pub struct Introspection {
    plugins: Arc<Plugins>,
    uuid: Arc<str>,
    runtime: Arc<Runtime>,
}

type Plugins = LazyLock<Vec<Plugin>, Box<dyn FnOnce() -> Vec<Plugin> + Send>>;

impl Introspection {
    /// Shows what `plugins`, which may block, says of the server that is known by `uuid`, and what
    /// the runtimes say that `runtime` knows.
    pub fn new(
        plugins: impl FnOnce() -> Vec<Plugin> + Send + 'static,
        uuid: String,
        runtime: Arc<Runtime>,
    ) -> Self {
        Self { plugins: Arc::new(LazyLock::new(Box::new(plugins))), uuid: uuid.into(), runtime }
    }

    /// Those of the plugins that are `wanted`.
    async fn find(
        &self,
        wanted: impl Fn(&Plugin) -> bool + Send + 'static,
    ) -> Result<Vec<api::Plugin>, Status> {
        let plugins = Arc::clone(&self.plugins);
        let to_wire = move || plugins.iter().filter(|it| wanted(it)).map(to_wire).collect();
        blocking(move || Ok(to_wire())).await
    }

    /// What the plugin says about what a client asks. Only the one for tasks says anything.
    async fn extra(&self, plugin: &api::Plugin, request: &Any) -> Result<Any, Status> {
        if (plugin.r#type.as_str(), plugin.id.as_str()) != TASKS {
            let reason = "plugin does not provided extra information";
            return Err(status(Error::NotImplemented(reason.to_owned())));
        }
        let unknown = || format!("unknown request type {}", proto::any::type_name(request));
        let request = proto::any::unpack::<RuntimeRequest>(request)
            .map_err(|error| Error::InvalidArgument(format!("runtime request: {error}")))
            .and_then(|request| request.ok_or_else(|| Error::NotImplemented(unknown())))
            .map_err(status)?;
        let info = self.runtime.info(&request.runtime_path, request.options).await;
        info.map(|info| proto::any::pack(&info)).map_err(|error| task_status(&error))
    }
}

/// The server's name for itself: made once, kept in the file `uuid` below `root`.
///
/// # Errors
///
/// The file cannot be read or written.
pub fn server_uuid(root: &Path) -> Result<String, Error> {
    let path = root.join("uuid");
    match fs::read_to_string(&path) {
        Ok(uuid) if !uuid.is_empty() => return Ok(uuid),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::file("read", path)(error)),
    }
    let kernel = Path::new("/proc/sys/kernel/random/uuid");
    let uuid = fs::read_to_string(kernel).map_err(Error::file("read", kernel))?;
    fs::write(&path, uuid.trim_end()).map_err(Error::file("write", path))?;
    Ok(uuid.trim_end().to_owned())
}

#[tonic::async_trait]
impl introspection_server::Introspection for Introspection {
    async fn plugins(
        &self,
        request: Request<PluginsRequest>,
    ) -> Result<Response<PluginsResponse>, Status> {
        let filter = Filter::parse_all(&request.into_inner().filters)
            .map_err(|error| status(error.into()))?;
        let plugins = self.find(move |plugin| filter.matches(plugin)).await?;
        Ok(Response::new(PluginsResponse { plugins }))
    }

    async fn server(&self, _request: Request<()>) -> Result<Response<ServerResponse>, Status> {
        let uuid = self.uuid.to_string();
        blocking(move || {
            let path = "/proc/self/ns/pid";
            let pidns = fs::metadata(path).map_err(Error::file("stat", path))?.ino();
            let pid = u64::from(std::process::id());
            Ok(Response::new(ServerResponse { uuid, pid, pidns, deprecations: Vec::new() }))
        })
        .await
    }

    async fn plugin_info(
        &self,
        request: Request<PluginInfoRequest>,
    ) -> Result<Response<PluginInfoResponse>, Status> {
        let PluginInfoRequest { r#type: kind, id, options } = request.into_inner();
        let not_found = status(Error::NotFound(format!("plugin {kind}.{id} not found")));
        let found = self.find(move |plugin| plugin.kind == kind && plugin.id == id).await?;
        let plugin = found.into_iter().next().ok_or(not_found)?;
        let extra = match options {
            Some(options) => Some(self.extra(&plugin, &options).await?),
            None => None,
        };
        Ok(Response::new(PluginInfoResponse { plugin: Some(plugin), extra }))
    }
}

impl Fields for Plugin {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        match path.first()?.as_str() {
            "type" => value(self.kind),
            "id" => value(&self.id),
            _ => None,
        }
    }
}

fn to_wire(plugin: &Plugin) -> api::Plugin {
    let platform = plugin.has_platform.then(|| platform_to_wire(plugin.platform.clone()));
    api::Plugin {
        r#type: plugin.kind.to_owned(),
        id: plugin.id.clone(),
        requires: plugin.requires.iter().map(|&kind| kind.to_owned()).collect(),
        platforms: platform.into_iter().collect(),
        exports: plugin.exports.clone(),
        capabilities: plugin.capabilities.clone(),
        init_err: plugin.init_error.as_ref().map(|message| proto::google::rpc::Status {
            code: tonic::Code::Unknown.into(),
            message: message.clone(),
            details: Vec::new(),
        }),
    }
}

fn platform_to_wire(platform: Option<crate::platform::Platform>) -> Platform {
    let platform = platform.unwrap_or_else(crate::platform::Platform::host);
    Platform {
        os: platform.os,
        architecture: platform.architecture,
        variant: platform.variant,
        ..Platform::default()
    }
}
