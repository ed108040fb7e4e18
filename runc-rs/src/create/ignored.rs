//! What a configuration asks for in vain, in runc's words, for people look for them in its log.

use crate::{
    log,
    spec::{Spec, resources::LinuxResources},
};

/// Warns of it.
pub(super) fn warn(spec: &Spec) {
    for mount in spec.mounts.iter().filter(|mount| !mount.destination.starts_with('/')) {
        log::warn(&format!(
            "mount destination {} is not absolute. Support for non-absolute mount destinations \
             will be removed in a future release.",
            mount.destination
        ));
    }
    if let Some(personality) = &spec.linux.personality
        && !personality.flags.is_empty()
    {
        log::warn(&format!(
            "ignoring unsupported personality flags: [{}] because personality flag has not \
             supported at this time",
            personality.flags.join(" ")
        ));
    }
    warn_of_kernel_memory(spec.linux.resources.as_ref());
}

/// Warns of limits of the kernel's memory, which it no longer has.
pub(crate) fn warn_of_kernel_memory(resources: Option<&LinuxResources>) {
    let memory = resources.and_then(|resources| resources.memory.as_ref());
    if memory.is_some_and(|memory| memory.kernel.is_some() || memory.kernel_tcp.is_some()) {
        log::warn("Kernel memory settings are ignored and will be removed");
    }
}
