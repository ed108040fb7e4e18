//! `ctr namespaces`

mod create;
mod label;
mod list;
mod remove;

super::group! {
    /// Create a namespace
    #[command(visible_alias = "c")]
    Create(create::Create),
    /// List namespaces
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Remove namespaces, which must be empty
    #[command(visible_alias = "rm")]
    Remove(remove::Remove),
    /// Set and clear labels of a namespace
    Label(label::Label),
}
