//! `ctr content`

mod active;
mod delete;
mod fetch;
mod get;
mod ingest;
mod label;
mod list;

super::group! {
    /// List writes that are not finished
    Active(active::Active),
    /// Delete blobs
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(delete::Delete),
    /// Fetch the content of an image without unpacking it
    Fetch(fetch::Fetch),
    /// Print a blob
    Get(get::Get),
    /// Write standard input as a blob
    Ingest(ingest::Ingest),
    /// List blobs
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Set and clear labels of a blob
    Label(label::Label),
}
