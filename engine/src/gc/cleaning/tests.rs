use std::ops::ControlFlow;

use snapshotter::{EditLabels, Fill, Info, Key, Labels, Mount, Snapshotter, Usage};

use super::*;

/// How long something may take that nobody is to hold up.
const DEADLINE: Duration = Duration::from_secs(60);

/// A snapshotter without snapshots, which does something when it deletes files.
pub(in crate::gc) struct Busy(pub(in crate::gc) Mutex<Box<dyn FnMut() + Send>>);

impl Snapshotter for Busy {
    fn prepare(
        &self,
        _: &Key,
        _: Option<&Key>,
        _: Labels,
    ) -> Result<Vec<Mount>, snapshotter::Error> {
        unreachable!("nothing is prepared")
    }
    fn view(&self, _: &Key, _: Option<&Key>, _: Labels) -> Result<Vec<Mount>, snapshotter::Error> {
        unreachable!("nothing is looked at")
    }
    fn mounts(&self, _: &Key) -> Result<Vec<Mount>, snapshotter::Error> {
        unreachable!("nothing is mounted")
    }
    fn commit(&self, _: &Key, _: &Key, _: Labels) -> Result<(), snapshotter::Error> {
        unreachable!("nothing is committed")
    }
    fn rebase(&self, _: &Key, _: &Key, _: &Key, _: Labels) -> Result<(), snapshotter::Error> {
        unreachable!("nothing is committed")
    }
    fn can_rebase(&self) -> bool {
        false
    }
    fn remove(&self, _: &Key) -> Result<(), snapshotter::Error> {
        unreachable!("nothing is there")
    }
    fn remove_within(
        &self,
        _: &redb::WriteTransaction,
        _: &[Key],
    ) -> Result<Vec<Key>, snapshotter::Error> {
        unreachable!("nothing is there")
    }
    fn stat(&self, _: &Key) -> Result<Info, snapshotter::Error> {
        unreachable!("nothing is there")
    }
    fn update(&self, _: &Key, _: &mut EditLabels<'_>) -> Result<Info, snapshotter::Error> {
        unreachable!("nothing is there")
    }
    fn walk(
        &self,
        _: Option<&str>,
        _: &mut dyn FnMut(Info) -> ControlFlow<()>,
    ) -> Result<(), snapshotter::Error> {
        Ok(())
    }
    fn usage(&self, _: &Key) -> Result<Usage, snapshotter::Error> {
        unreachable!("nothing is there")
    }
    fn sync(&self) -> Result<(), snapshotter::Error> {
        unreachable!("nothing is synced")
    }
    fn suspects(&self) -> Result<Vec<Info>, snapshotter::Error> {
        unreachable!("nothing is there")
    }
    fn renew(&self, _: &Key, _: &mut Fill<'_>) -> Result<(), snapshotter::Error> {
        unreachable!("nothing is there")
    }
    fn cleanup(&self) -> Result<(), snapshotter::Error> {
        (self.0.lock().expect("one at a time"))();
        Ok(())
    }
}

#[test]
fn a_slow_one_holds_nobody_up_and_is_not_started_twice() {
    let (begun, begins) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let slow = move || {
        begun.send(()).expect("the test waits");
        let wait = wait.lock().expect("one at a time");
        wait.recv_timeout(DEADLINE).expect("the test goes on");
    };
    let (cleaned, quick) = mpsc::channel();
    let job = |name: &str, work: &Work| Job { name: name.to_owned(), work: Arc::clone(work) };
    let (slow, quickly): (Work, Work) =
        (Arc::new(slow), Arc::new(move || cleaned.send(()).expect("the test waits")));
    let jobs = || vec![job("a slow one", &slow), job("quick", &quickly)];
    let cleaning = Cleaning::default();
    cleaning.run(jobs(), Duration::from_millis(1));
    begins.recv_timeout(DEADLINE).expect("is cleaned up");
    quick.recv_timeout(DEADLINE).expect("waits for no other");
    // What is removed while it is at work may be too late for it, so it starts over; once.
    for _ in 0..3 {
        cleaning.run(jobs(), Duration::from_millis(1));
    }
    begins.try_recv().expect_err("it has one thread");
    go_on.send(()).expect("waits");
    begins.recv_timeout(DEADLINE).expect("starts over");
    go_on.send(()).expect("waits");
    let until = Instant::now() + DEADLINE;
    while !cleaning.lock().is_empty() {
        assert!(Instant::now() < until, "it has not ended");
        thread::yield_now();
    }
    begins.try_recv().expect_err("it was asked three times at once");
    // A thread that panics makes room, too.
    drop(begins);
    cleaning.run(jobs(), DEADLINE);
    assert!(cleaning.lock().is_empty());
}
