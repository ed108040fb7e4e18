//! runc-rs, an OCI runtime with runc's command line.

fn main() {
    std::process::exit(runc_rs::cli::main());
}
