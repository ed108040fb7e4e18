//! `ctr containers`

mod checkpoint;
mod create;
mod document;
mod info;
mod label;
mod list;
mod remove;
mod restore;

super::group! {
    /// Keep a container as an image
    Checkpoint(checkpoint::Checkpoint),
    /// Create a container
    Create(create::Create),
    /// Delete containers
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(remove::Remove),
    /// Print a container's record
    Info(info::Info),
    /// List containers
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Set and clear labels of a container
    Label(label::Label),
    /// Make a container of its checkpoint
    Restore(restore::Restore),
}
