//! On which CPUs this process may run, and from which NUMA nodes its memory comes.

#![expect(unsafe_code, reason = "the kernel reads masks of any length")]

use std::io;

/// A set of CPUs or nodes, as the kernel takes it: one bit each, in words of its own size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask(Vec<libc::c_ulong>);

impl Mask {
    /// More CPUs than any kernel has.
    const CPUS_MAX: usize = 64 << 10;

    /// Every CPU that there may ever be.
    pub fn all() -> Self {
        Self(vec![libc::c_ulong::MAX; Self::CPUS_MAX / libc::c_ulong::BITS as usize])
    }

    /// Adds a member.
    pub fn insert(&mut self, number: usize) {
        let bits = libc::c_ulong::BITS as usize;
        if self.0.len() <= number / bits {
            self.0.resize(number / bits + 1, 0);
        }
        self.0[number / bits] |= 1 << (number % bits);
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Says whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first word, for people to read.
    pub fn first_word(&self) -> u64 {
        self.0.first().copied().unwrap_or(0)
    }
}

impl FromIterator<usize> for Mask {
    fn from_iter<T: IntoIterator<Item = usize>>(numbers: T) -> Self {
        let mut mask = Self::default();
        numbers.into_iter().for_each(|number| mask.insert(number));
        mask
    }
}

/// Sets the CPUs on which this process may run. Those that its cgroup does not allow are kept in
/// mind for when it will.
///
/// # Errors
///
/// `EINVAL` when none of them exists and is allowed.
pub fn set_cpus(cpus: &Mask) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the vector's words have.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(cpus.0.as_slice()),
            cpus.0.as_ptr(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The CPUs on which this process may run.
///
/// # Errors
///
/// `EINVAL` on a machine with more CPUs than any has.
pub fn cpus() -> io::Result<Mask> {
    let mut words = Mask::all().0;
    // SAFETY: the kernel writes at most as many bytes as the vector's words have.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            size_of_val(words.as_slice()),
            words.as_mut_ptr(),
        )
    };
    let Ok(length) = usize::try_from(result) else { return Err(io::Error::last_os_error()) };
    words.truncate(length / size_of::<libc::c_ulong>());
    Ok(Mask(words))
}

/// Sets from which nodes this process's memory comes, set_mempolicy(2): `mode` is `MPOL_*` with
/// `MPOL_F_*`.
///
/// # Errors
///
/// `EINVAL` when mode and nodes do not fit each other or the machine.
pub fn set_memory_policy(mode: i32, nodes: &Mask) -> io::Result<()> {
    let pointer = if nodes.is_empty() { std::ptr::null() } else { nodes.0.as_ptr() };
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.0.len() * libc::c_ulong::BITS as usize + 1 };
    // SAFETY: the kernel reads `bits - 1` bits, which are the vector's words, or nothing.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        let cases: [(&str, &[usize], &[libc::c_ulong]); 5] = [
            ("none", &[], &[]),
            ("first", &[0], &[1]),
            ("several", &[0, 2, 3], &[0b1101]),
            ("in the second word", &[65], &[0, 2]),
            ("past 1024", &[1024], &[&[0; 16][..], &[1]].concat()),
        ];
        for (case, numbers, want) in cases {
            let mask: Mask = numbers.iter().copied().collect();
            assert_eq!(mask.0, want, "{case}");
            assert_eq!(mask.is_empty(), numbers.is_empty(), "{case}");
        }
    }

    #[test]
    fn what_is_set_is_read_again() {
        let thread = std::thread::spawn(|| {
            let before = cpus().expect("read");
            let one = before.first_word() & before.first_word().wrapping_neg();
            set_cpus(&Mask(vec![one])).expect("one that is allowed");
            assert_eq!(cpus().expect("read").first_word(), one);
            let far = [one.trailing_zeros() as usize, 1024, 8191].into_iter().collect();
            set_cpus(&far).expect("one that is allowed, and some that there are not");
            assert_eq!(cpus().expect("read").first_word(), one);
            set_cpus(&Mask::all()).expect("all");
            assert_eq!(cpus().expect("read"), before);
            let none = set_cpus(&Mask::default()).expect_err("nowhere to run");
            assert_eq!(none.raw_os_error(), Some(libc::EINVAL));
        });
        thread.join().expect("the thread's affinity is its own");
    }

    #[test]
    fn memory_policies() {
        const BIND: i32 = 2;
        let thread = std::thread::spawn(|| {
            set_memory_policy(BIND, &[0].into_iter().collect()).expect("the first node");
            set_memory_policy(0, &Mask::default()).expect("the default");
            let wrong = set_memory_policy(BIND, &Mask::default()).expect_err("no node");
            assert_eq!(wrong.raw_os_error(), Some(libc::EINVAL));
        });
        thread.join().expect("the thread's policy is its own");
    }
}
