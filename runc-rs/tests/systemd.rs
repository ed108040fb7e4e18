//! The systemd cgroup driver, on a machine with systemd and cgroup v2.

mod support;

use support::Bundle;

#[test]
fn the_fs_driver_works_beside_systemd() {
    let bundle = Bundle::new("true");
    assert_eq!(bundle.run().status, 0);
}
