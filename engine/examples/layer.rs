//! Applies a layer to a directory, or makes one from two directories, for a look by hand.
//!
//! ```text
//! layer apply  <file> <directory>
//! layer compare <lower directory, or -> <upper directory> <file> [uncompressed|gzip|zstd]
//! ```

use std::{
    fs::File,
    io::{BufWriter, Write},
    time::Instant,
};

use engine::diff::{CompareOptions, Compression, Limits, apply, compare};
use snapshotter::Mount;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let start = Instant::now();
    let text = match arguments.as_slice() {
        ["apply", file, directory] => {
            let blob = File::open(file).expect("the layer can be opened");
            let mounts = [Mount::bind((*directory).to_owned(), false)];
            let applied = apply(blob, &mounts, &Limits::default()).expect("apply");
            format!("{} {}", applied.diff_id, applied.size)
        }
        ["compare", lower, upper, file, rest @ ..] => {
            let compression = rest.first().copied().unwrap_or("uncompressed");
            let compression: Compression = compression.parse().expect("a compression");
            let bind = |path: &str| match path {
                "-" => Vec::new(),
                path => vec![Mount::bind(path.to_owned(), true)],
            };
            let sink = BufWriter::new(File::create(file).expect("the layer can be made"));
            let options = CompareOptions { compression, mtime_max: None };
            let compared = compare(&bind(lower), &bind(upper), &options, sink).expect("compare");
            format!("{} {} {}", compared.digest, compared.size, compared.diff_id)
        }
        _ => panic!("layer apply <file> <directory> | layer compare <lower> <upper> <file>"),
    };
    writeln!(std::io::stdout(), "{text} {:?}", start.elapsed()).expect("stdout");
}
