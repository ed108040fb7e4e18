//! Runs the fuzz targets on their seeds, and on texts near them: the same ones in each run.
//!
//! `fuzz/` looks for new ones; see CONTRIBUTING.md. What it finds becomes a seed.

#[path = "../../fuzz/near.rs"]
mod near;

use std::path::Path;

use runc_rs::fuzz::TARGETS;

#[test]
fn seeds_and_what_is_near_them() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, target) in TARGETS {
        let mut seeds = near::seeds(&top.join("../fuzz/seeds").join(name));
        if name == "seccomp" {
            let profiles = near::seeds(&top.join("tests/data/seccomp"));
            seeds.extend(profiles.into_iter().filter(|(path, _)| path.ends_with("json")));
        }
        near::run(name, target, &seeds, near::ROUNDS);
    }
}
