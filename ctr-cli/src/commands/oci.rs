//! `ctr oci`

mod spec;

super::group! {
    /// Print the default OCI specification
    Spec(spec::Print),
}
