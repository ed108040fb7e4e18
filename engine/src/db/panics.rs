//! A database whose damage the library does not report, but panics on.

use std::{
    io::{self, Write as _},
    panic,
    path::Path,
    process,
};

use crate::error::Error;

/// What the path of the database library's source files has in it.
const LIBRARY: &str = "/redb-";

/// Ends the process when the database library panics, after a line that says what is damaged and what
/// helps; other panics stay what they are. For the life of the process, from here on.
///
/// Most damage of a page is an error of the library's, but some of its branches hold that a page
/// which it wrote cannot look so. Going on is no choice: what such a call was to read or write is not
/// known. Containers are held by their shims meanwhile.
pub fn end_on_damage(database: &Path) {
    let path = database.to_owned();
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let Some(location) = info.location().filter(|place| place.file().contains(LIBRARY)) else {
            return before(info);
        };
        let said = info.payload();
        let said = said.downcast_ref::<&str>().copied().or(said.downcast_ref().map(String::as_str));
        let said = said.unwrap_or("no message");
        let source = format!("redb broke off at line {}: {said}", location.line()).into();
        let error = Error::DamagedDatabase { path: path.clone(), source };
        // Nobody is left to tell when even this fails.
        let _ = writeln!(io::stderr(), "gantryd: {}", sys::error::Chain(&error));
        process::exit(1);
    }));
}
