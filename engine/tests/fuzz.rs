//! Runs the fuzz targets on their seeds, and on texts near them: the same ones in each run.
//!
//! `fuzz/` looks for new ones; see CONTRIBUTING.md. What it finds becomes a seed. Needs root, for
//! what layers ask for.

#[path = "../../fuzz/near.rs"]
mod near;

use std::path::Path;

use engine::fuzz::TARGETS;

#[test]
fn seeds_and_what_is_near_them() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, target) in TARGETS {
        let seeds = near::seeds(&top.join("../fuzz/seeds").join(name));
        near::run(name, target, &seeds, near::ROUNDS);
    }
}
