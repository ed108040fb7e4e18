//! Printing errors with their causes.

use std::{error::Error, fmt};

/// Displays an error and, after colons, the chain of its sources.
///
/// A message in this project does not repeat its source; whoever prints, prints the chain.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
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
}
