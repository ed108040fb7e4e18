use super::*;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn processor(accepts: &str, returns: &str, script: &str) -> Processor {
    Processor {
        accepts: vec!["application/none".to_owned(), accepts.to_owned()],
        returns: returns.to_owned(),
        path: "sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: vec!["WORD=said".to_owned()],
    }
}

fn processors(all: &[(&str, &str, &str, &str)]) -> Processors {
    let make = |(name, accepts, returns, script): &(&str, &str, &str, &str)| {
        ((*name).to_owned(), processor(accepts, returns, script))
    };
    all.iter().map(make).collect()
}

#[test]
fn chains() {
    let all = processors(&[
        ("a", "x/enc", &format!("{LAYER}+gzip"), ""),
        ("b", "x/once", LAYER, ""),
        ("c", "x/twice", "x/enc", ""),
        ("d", "x/loop", "x/loop", ""),
        ("e", "x/lost", "x/unknown", ""),
        ("f", &format!("{LAYER}+zstd"), LAYER, ""),
        ("g", &format!("{LAYER}+zstd"), LAYER, ""),
    ]);
    let (gzip, zstd) = (format!("{LAYER}+gzip"), format!("{LAYER}+zstd"));
    let cases = [
        ("a layer", LAYER, Some(vec![])),
        ("compressed", &gzip, Some(vec![])),
        ("one", "x/once", Some(vec!["b"])),
        ("one, and then compressed", "x/enc", Some(vec!["a"])),
        ("two", "x/twice", Some(vec!["c", "a"])),
        ("without end", "x/loop", None),
        ("to nowhere", "x/lost", None),
        ("unknown", "x/unknown", None),
        ("in the place of our own", &zstd, Some(vec!["f"])),
    ];
    for (case, media_type, want) in cases {
        let found = Chain::find(&all, media_type);
        let found = found.map(|chain| chain.steps.iter().map(|step| step.name).collect::<Vec<_>>());
        assert_eq!(found, want, "{case}");
    }
}

/// What the programs make of `input`, or the whole text of the error.
fn run(all: &Processors, input: &[u8], payload: Option<&[u8]>) -> Result<Vec<u8>, String> {
    let mut chain = Chain::find(all, "x/in").expect("a chain");
    chain.silence_max = Duration::from_secs(5);
    let payloads = payload.map(|bytes| ("a".to_owned(), bytes.to_vec()));
    let payloads = payloads.into_iter().collect();
    let blob = File::from(memory(input).expect("memory"));
    let text = |error: DiffError| sys::error::Chain(&error).to_string();
    let mut running = chain.start(blob, &payloads).map_err(text)?;
    let mut output = Vec::new();
    let result = running.read_to_end(&mut output).map(drop).map_err(DiffError::Read);
    running.finish(result).map_err(text)?;
    Ok(output)
}

#[test]
fn programs() {
    let one = |script| processors(&[("a", "x/in", LAYER, script)]);
    let two =
        |first, second| processors(&[("a", "x/in", "x/mid", first), ("b", "x/mid", LAYER, second)]);
    let long = "x".repeat(STDERR_LEN_MAX);
    let cases = [
        ("input", one("tr a-z A-Z"), None, Ok("HELLO".to_owned())),
        (
            "environment",
            one("echo $STREAM_PROCESSOR_MEDIATYPE $WORD"),
            None,
            Ok("x/in said\n".to_owned()),
        ),
        ("payload", one("cat <&3"), Some("key"), Ok("key".to_owned())),
        ("no payload", one("[ -e /proc/self/fd/3 ] || echo none"), None, Ok("none\n".to_owned())),
        ("two", two("tr a-z A-Z", "rev"), None, Ok("OLLEH".to_owned())),
        (
            "one that fails says why",
            one("cat; echo wrong key >&2; exit 3"),
            None,
            Err("stream processor \"a\": exit status: 3: wrong key".to_owned()),
        ),
        (
            "the first that fails is the cause",
            two("echo wrong key >&2; exit 3", "cat; exit 4"),
            None,
            Err("stream processor \"a\": exit status: 3: wrong key".to_owned()),
        ),
        (
            "much is cut",
            one("yes xx | tr -d '\\n' | head -c 100000 >&2; exit 1"),
            None,
            Err(format!("stream processor \"a\": exit status: 1: {long}")),
        ),
        (
            "one that is silent is ended",
            one("sleep 1000"),
            None,
            Err("stream processor \"a\": printed nothing for 5 s".to_owned()),
        ),
        (
            "what it leaves behind holds nobody up",
            one("sleep 1000 >/dev/null & cat; echo no >&2; exit 1"),
            None,
            Err("stream processor \"a\": exit status: 1: no".to_owned()),
        ),
    ];
    for (case, all, payload, want) in cases {
        let got = run(&all, b"hello", payload.map(str::as_bytes));
        let got = got.map(|bytes| String::from_utf8(bytes).expect("text"));
        assert_eq!(got, want, "{case}");
    }
    let mut missing = one("");
    missing.get_mut("a").expect("is there").path = "/no/such/program".to_owned();
    let error = run(&missing, b"", None).expect_err("there is no program");
    assert!(error.contains("stream processor \"a\": start \"/no/such/program\""), "{error}");
}

#[test]
fn a_program_that_is_not_read_to_its_end_is_not_to_blame() {
    let all = processors(&[("a", "x/in", LAYER, "exec yes")]);
    let chain = Chain::find(&all, "x/in").expect("a chain");
    let blob = File::from(memory(b"").expect("memory"));
    let mut running = chain.start(blob, &BTreeMap::new()).expect("starts");
    running.read_exact(&mut [0; 100]).expect("reads");
    let problem = DiffError::TooLarge { what: "bytes", max: 100 };
    let error = running.finish::<()>(Err(problem)).expect_err("fails");
    assert!(matches!(error, DiffError::TooLarge { .. }), "{error}");
}
