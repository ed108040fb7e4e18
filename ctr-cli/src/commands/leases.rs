//! `ctr leases`

mod create;
mod list;
mod remove;

super::group! {
    /// List leases
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Create a lease
    Create(create::Create),
    /// Delete leases
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(remove::Remove),
}
