//! Printing errors with their causes.

use std::{error::Error, fmt, io};

/// Displays an error and, after colons, the chain of its sources.
///
/// A message in this project does not repeat its source; whoever prints, prints the chain. What
/// the system has refused is told in the words that people and programs know and look for, those
/// of glibc, whichever C library the program is linked with.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_one(f, self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            f.write_str(": ")?;
            write_one(f, error)?;
            source = error.source();
        }
        Ok(())
    }
}

fn write_one(f: &mut fmt::Formatter<'_>, error: &(dyn Error + 'static)) -> fmt::Result {
    let io = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let number =
        io.or_else(|| error.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error()));
    match number.and_then(|number| Some((number, usual_words(number)?))) {
        Some((number, words)) => write!(f, "{words} (os error {number})"),
        None => write!(f, "{error}"),
    }
}

/// glibc's words for an error for which musl has others.
fn usual_words(number: i32) -> Option<&'static str> {
    let words = match number {
        libc::EIO => "Input/output error",
        libc::ENOMEM => "Cannot allocate memory",
        libc::EBUSY => "Device or resource busy",
        libc::EXDEV => "Invalid cross-device link",
        libc::EMFILE => "Too many open files",
        libc::ENOTTY => "Inappropriate ioctl for device",
        libc::ESPIPE => "Illegal seek",
        libc::ERANGE => "Numerical result out of range",
        libc::EDEADLK => "Resource deadlock avoided",
        libc::ENAMETOOLONG => "File name too long",
        libc::ELOOP => "Too many levels of symbolic links",
        libc::EOVERFLOW => "Value too large for defined data type",
        libc::EMSGSIZE => "Message too long",
        libc::EOPNOTSUPP => "Operation not supported",
        libc::EADDRINUSE => "Address already in use",
        libc::EADDRNOTAVAIL => "Cannot assign requested address",
        libc::EHOSTUNREACH => "No route to host",
        libc::ETIMEDOUT => "Connection timed out",
        libc::ECHILD => "No child processes",
        libc::EDQUOT => "Disk quota exceeded",
        _ => return None,
    };
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open")]
    struct Open(#[source] std::num::ParseIntError);

    #[test]
    fn prints_sources() {
        let error = Open("x".parse::<u8>().expect_err("not a number"));
        assert_eq!(Chain(&error).to_string(), "open: invalid digit found in string");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("join")]
    struct Join(#[source] io::Error);

    #[test]
    fn words_are_the_same_with_any_c_library() {
        let error = Join(io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(Chain(&error).to_string(), "join: Device or resource busy (os error 16)");
        let errno = rustix::io::Errno::MFILE;
        assert_eq!(Chain(&errno).to_string(), "Too many open files (os error 24)");
        let other = io::Error::other("no number");
        assert_eq!(Chain(&other).to_string(), "no number");
    }

    /// On glibc the table must say what the library says.
    #[cfg(target_env = "gnu")]
    #[test]
    fn table_is_glibcs() {
        for number in 1..134 {
            let Some(words) = usual_words(number) else { continue };
            let theirs = io::Error::from_raw_os_error(number).to_string();
            assert_eq!(theirs, format!("{words} (os error {number})"));
        }
    }
}
