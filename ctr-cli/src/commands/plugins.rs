//! `ctr plugins`

mod list;

super::group! {
    /// List the daemon's plugins
    #[command(visible_alias = "ls")]
    List(list::List),
}
