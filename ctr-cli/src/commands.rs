//! One module per group of commands, one file per command.

pub(crate) mod containers;
pub(crate) mod content;
pub(crate) mod events;
pub(crate) mod gc;
pub(crate) mod images;
pub(crate) mod info;
pub(crate) mod leases;
pub(crate) mod namespaces;
pub(crate) mod oci;
pub(crate) mod plugins;
pub(crate) mod run;
pub(crate) mod sandboxes;
pub(crate) mod shim;
pub(crate) mod snapshots;
pub(crate) mod tasks;
pub(crate) mod version;

/// Makes the enum of a group's commands and its dispatch.
macro_rules! group {
    ($($(#[$attribute:meta])* $variant:ident($command:ty)),* $(,)?) => {
        /// The commands of this group.
        #[derive(Debug, clap::Subcommand)]
        #[allow(clippy::large_enum_variant, reason = "there is one, and it is consumed")]
        pub(crate) enum Command {
            $($(#[$attribute])* $variant($command),)*
        }

        impl Command {
            pub(crate) async fn run(self, global: &crate::cli::Global) -> anyhow::Result<()> {
                match self {
                    $(Self::$variant(command) => command.run(global).await,)*
                }
            }
        }
    };
}
pub(crate) use group;

/// Does something to each of several targets. Failures are printed and do not stop the rest; the
/// first is returned.
pub(crate) async fn each<T: std::fmt::Display>(
    targets: &[T],
    mut work: impl AsyncFnMut(&T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut first = None;
    for target in targets {
        if let Err(error) = work(target).await {
            match first {
                None => first = Some(error),
                Some(_) => crate::error::warn(&crate::error::text(&error)),
            }
        }
    }
    first.map_or(Ok(()), Err)
}
