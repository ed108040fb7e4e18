//! The filter language of lists and subscriptions.
//!
//! ```text
//! filters   = filter, filter ...             several filters: one of them matches
//! filter    = [ selector { "," selector } ]  all of them match
//! selector  = fieldpath [ operator value ]   without operator: the field is present
//! fieldpath = field { "." field }
//! field     = [A-Za-z0-9_]+ | quoted
//! operator  = "==" | "!=" | "~="             "~=" looks for a regular expression
//! value     = quoted | any visible characters but ","
//! quoted    = Go's string literal, in "..."; for values of "~=" also in /.../ or |...|
//! ```
//!
//! A field that an object lacks is empty: it is unequal to every other value, and an expression
//! that matches nothing matches it. An expression that cannot be compiled matches no object.
//!
//! Source: containerd, `pkg/filters`; error texts are its own, because clients print them.
//! Expressions are those of `regex-lite`, where `\d`, `\w` and `\s` mean ASCII as they do in Go.

mod parse;
mod unquote;

use std::borrow::Cow;

pub use self::parse::ParseFilterError;

/// What a filter can ask an object for.
pub trait Fields {
    /// The value of the field at `path`, or nothing when the object has no such field or its value
    /// is empty.
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>>;
}

/// Looks up the rest of a field path in a map: its keys may contain dots.
pub fn entry<'a>(map: &'a crate::labels::Labels, path: &[String]) -> Option<Cow<'a, str>> {
    map.get(&path.join(".")).map(|value| Cow::Borrowed(value.as_str()))
}

/// A value of a field, if it is not empty.
pub fn value(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}

/// Selects objects. The default selects all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    any: Vec<Vec<Selector>>,
}

impl Filter {
    /// Reads several filters, of which one must match; none at all select every object.
    ///
    /// # Errors
    ///
    /// What is wrong with the first one that is malformed.
    pub fn parse_all<S: AsRef<str>>(texts: &[S]) -> Result<Self, ParseFilterError> {
        let any = texts.iter().map(|text| parse::filter(text.as_ref()));
        Ok(Self { any: any.collect::<Result<_, _>>()? })
    }

    /// Whether every object is selected.
    pub fn selects_all(&self) -> bool {
        self.any.is_empty()
    }

    /// Whether `object` is selected.
    pub fn matches(&self, object: &dyn Fields) -> bool {
        self.any.is_empty()
            || self.any.iter().any(|all| all.iter().all(|selector| selector.matches(object)))
    }
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

impl Selector {
    fn matches(&self, object: &dyn Fields) -> bool {
        let found = object.field(&self.path);
        let text = found.as_deref().unwrap_or("");
        match &self.test {
            Test::Present => found.is_some(),
            Test::Equal(want) => found.is_some() && text == want,
            Test::NotEqual(other) => text != other,
            Test::Matches(expression) => expression.as_ref().is_some_and(|e| e.is_match(text)),
        }
    }
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// Nothing when the expression does not compile.
    Matches(Option<regex_lite::Regex>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Labels;

    struct Object(Labels);

    impl Fields for Object {
        fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
            match path {
                [name] if name == "name" => value("nginx"),
                [labels, rest @ ..] if labels == "labels" => entry(&self.0, rest),
                _ => None,
            }
        }
    }

    #[test]
    fn matches() {
        let cases: &[(&str, &[&str], bool)] = &[
            ("no filter", &[], true),
            ("empty filter", &[""], true),
            ("present", &["name"], true),
            ("absent", &["labels.absent"], false),
            ("equal", &["name==nginx"], true),
            ("not equal", &["name!=nginx"], false),
            ("absent is unequal", &["labels.absent!=x"], true),
            ("absent is not equal to empty", &["labels.absent==\"\""], false),
            ("expression", &["name~=^ng"], true),
            ("expression in slashes", &["name~=/^n.inx$/"], true),
            ("expression in bars", &["name~=|^n/?g|"], true),
            ("expression that finds nothing", &["name~=^x"], false),
            ("empty expression on absent", &["labels.absent~=/^$/"], true),
            ("broken expression", &["name~=/(/"], false),
            ("and", &["name==nginx,labels.a==b"], true),
            ("and, one wrong", &["name==nginx,labels.a==c"], false),
            ("or", &["name==x", "labels.a==b"], true),
            ("dots in a label", &["labels.containerd.io/x"], false),
            ("quoted label", &[r#"labels."containerd.io/x"==y"#], true),
            ("quoted value", &[r#"labels.sp=="a b""#], true),
            ("escape", &[r#"name=="\x6eginx""#], true),
            ("spaces around the operator", &["name == nginx"], true),
        ];
        let object = Object(
            [("a", "b"), ("containerd.io/x", "y"), ("sp", "a b")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
        );
        for (case, texts, want) in cases {
            let got = Filter::parse_all(texts).map(|filter| filter.matches(&object));
            let got = match got {
                Ok(got) => got,
                // The slash is no character of a field.
                Err(_) if *case == "dots in a label" => false,
                Err(error) => panic!("{case}: {error}"),
            };
            assert_eq!(got, *want, "{case}");
        }
    }
}
