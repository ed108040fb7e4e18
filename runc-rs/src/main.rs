//! runc-rs, an OCI runtime with runc's command line.

use sys::short_lived::Heap;

#[global_allocator]
static HEAP: Heap = Heap::new();

fn main() {
    std::process::exit(runc_rs::cli::main());
}
