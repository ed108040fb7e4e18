//! Containers that criu takes apart and makes again.

#![expect(clippy::print_stderr, reason = "what is not tested is said")]

use std::{
    io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read as _, Write as _},
    process::{Child, Command},
};

use super::{Answer, Bundle};

/// Whether criu works here. Where it has to, the environment says so.
pub(crate) fn criu_works() -> bool {
    let works = Command::new("criu").arg("check").output().is_ok_and(|out| out.status.success());
    let required = std::env::var_os("GANTRY_REQUIRE_CRIU").is_some();
    assert!(works || !required, "criu check fails, and GANTRY_REQUIRE_CRIU is set");
    if !works {
        eprintln!("SKIPPED: `criu check` fails here, or there is no criu in PATH");
    }
    works
}

/// Answers each line that it reads.
pub(crate) const ECHO: &str = "while read line; do echo got $line; done";

/// A container with pipes for input and output.
pub(crate) struct Talking {
    pub(crate) bundle: Bundle,
    pub(crate) input: PipeWriter,
    pub(crate) output: BufReader<PipeReader>,
}

impl Talking {
    /// Starts a container in the background.
    pub(crate) fn start(bundle: Bundle) -> Self {
        bundle.write_config();
        Self::with(bundle, &["run", "-d"])
    }

    pub(crate) fn with(bundle: Bundle, words: &[&str]) -> Self {
        let (stdin, input) = std::io::pipe().expect("pipe");
        let (output, stdout) = std::io::pipe().expect("pipe");
        let (mut errors, stderr) = std::io::pipe().expect("pipe");
        let mut command = bundle.command(words);
        command.args(["-b", bundle.path_text(), &bundle.id]);
        let status = command.stdin(stdin).stdout(stdout).stderr(stderr).status().expect("run");
        drop(command);
        if !status.success() {
            let mut text = String::new();
            errors.read_to_string(&mut text).expect("read errors");
            panic!("{words:?}: {text}");
        }
        Self { bundle, input, output: BufReader::new(output) }
    }

    /// Says something, and checks that it is answered.
    pub(crate) fn talk(&mut self, word: &str) {
        writeln!(self.input, "{word}").expect("write");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read");
        assert_eq!(line, format!("got {word}\n"));
    }

    pub(crate) fn checkpoint(&self, more: &[&str]) -> Answer {
        checkpoint(&self.bundle, more)
    }

    /// Ends this one, and restores it with other pipes.
    pub(crate) fn restore(self, more: &[&str]) -> Self {
        let bundle = self.bundle;
        drop((self.input, self.output));
        let (images, work) = (images(&bundle), work(&bundle));
        let words = ["restore", "-d", "--image-path", &images, "--work-path", &work];
        Self::with(bundle, &[&words[..], more].concat())
    }
}

/// Where the images are.
pub(crate) fn images(bundle: &Bundle) -> String {
    format!("{}/images", bundle.path_text())
}

/// Where criu works, and has its log.
pub(crate) fn work(bundle: &Bundle) -> String {
    format!("{}/work", bundle.path_text())
}

/// Makes a checkpoint.
pub(crate) fn checkpoint(bundle: &Bundle, more: &[&str]) -> Answer {
    let (images, work) = (images(bundle), work(bundle));
    let mut words = vec!["checkpoint", "--image-path", &images, "--work-path", &work];
    words.extend(more);
    words.push(&bundle.id);
    bundle.call(&words)
}

/// Restores, without standard streams that are kept.
pub(crate) fn restore(bundle: &Bundle, more: &[&str]) -> Answer {
    let (images, work) = (images(bundle), work(bundle));
    let mut words = vec!["restore", "-b", bundle.path_text()];
    words.extend(["--image-path", &images, "--work-path", &work]);
    words.extend(more);
    words.push(&bundle.id);
    bundle.call(&words)
}

/// A process that ends with the test.
pub(crate) struct Helper(pub(crate) Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Checks that all was well.
#[track_caller]
pub(crate) fn succeed(answer: &Answer) {
    assert_eq!(answer.status, 0, "{}", answer.stderr);
}

/// Checks that it failed, with these words.
#[track_caller]
pub(crate) fn fail(answer: &Answer, want: &str) {
    assert_eq!(answer.status, 1, "{}", answer.stderr);
    // A message with quotes is quoted once more in the log.
    let text = answer.stderr.replace("\\\"", "\"");
    assert!(text.contains(want), "{text}");
}

/// What a program in the container writes.
pub(crate) fn inside(bundle: &Bundle, words: &[&str]) -> String {
    let answer = bundle.on("exec", words);
    succeed(&answer);
    answer.stdout
}

/// The pid of its init.
pub(crate) fn pid(bundle: &Bundle) -> i64 {
    bundle.state()["pid"].as_i64().expect("a pid")
}

/// Ends a container, of which nothing may be left.
pub(crate) fn end(bundle: Bundle) {
    succeed(&bundle.on("delete", &["--force"]));
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    listener.local_addr().expect("address").port()
}

/// Whether criu can bring pages when they are needed.
pub(crate) fn lazy_pages_work() -> bool {
    let check = Command::new("criu").args(["check", "--feature", "uffd-noncoop"]).output();
    let works = check.expect("run criu").status.success();
    if !works {
        eprintln!("SKIPPED: this kernel has no userfaultfd that criu can use");
    }
    works
}
