//! Whether something has grown.

use crate::sample::{FIGURES, Growth, Sample};

/// Samples that must be there for a verdict: two in each third.
pub(crate) const SAMPLES_MIN: usize = 6;

/// What became of one figure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    /// The figure's name.
    pub(crate) name: &'static str,
    /// The mean of the first third of the samples.
    pub(crate) early: f64,
    /// The mean of the last third.
    pub(crate) late: f64,
    /// Whether that is more than may be.
    pub(crate) has_grown: bool,
}

/// Judges the samples of a phase, of which the first was taken after the warm-up.
///
/// The thirds are compared and not the first and the last sample, so that one outlier decides
/// nothing. What must not change at all is judged by the last sample, and may have less.
pub(crate) fn judge(samples: &[Sample]) -> Vec<Finding> {
    let third = (samples.len() / 3).max(1);
    let (early, late) = (&samples[..third], &samples[samples.len() - third..]);
    let value = |sample: &Sample, name| sample.get(name).copied().unwrap_or(f64::NAN);
    let mean = |of: &[Sample], name| {
        of.iter().map(|sample| value(sample, name)).sum::<f64>() / of.len() as f64
    };
    let ends = samples.first().zip(samples.last());
    FIGURES
        .iter()
        .map(|&(name, growth)| {
            let (early, late) = (mean(early, name), mean(late, name));
            // A figure that is missing is not good either.
            let is_good = match growth {
                Growth::None => {
                    ends.is_some_and(|(first, last)| value(last, name) <= value(first, name))
                }
                Growth::AtMost(limit) => late - early <= limit,
                Growth::Shown => true,
            };
            Finding { name, early, late, has_grown: !is_good }
        })
        .collect()
}

/// Tries the verdict on samples whose answer is known.
pub(crate) fn judges_right() -> anyhow::Result<()> {
    let flat: f64 = 1000.0;
    // How a figure goes, over twelve samples; whether one that may move has grown, and one that
    // must not.
    type Course = fn(f64) -> f64;
    let cases: &[(&str, Course, bool, bool)] = &[
        ("the same", |_| 0.0, false, false),
        ("up and down", |at| if (at as u32).is_multiple_of(2) { 0.0 } else { 300.0 }, false, true),
        ("a leak", |at| at * 400.0, true, true),
        ("one more at the end", |at| f64::from(u8::from(at > 10.5)), false, true),
        ("less", |at| -at, false, false),
    ];
    for (case, course, moving, fixed) in cases {
        let samples: Vec<Sample> = (0..12)
            .map(|at| FIGURES.iter().map(|(name, _)| (*name, flat + course(at.into()))).collect())
            .collect();
        for finding in judge(&samples) {
            let growth = FIGURES.iter().find(|(name, _)| *name == finding.name);
            let want = match growth.map(|(_, growth)| growth) {
                Some(Growth::None) => *fixed,
                Some(Growth::Shown) => false,
                // Narrow limits, such as that for threads, are passed by courses for wide ones.
                Some(Growth::AtMost(limit)) if *limit < 1024.0 => continue,
                _ => *moving,
            };
            anyhow::ensure!(finding.has_grown == want, "{case}: {finding:?}");
        }
    }
    let missing = judge(&vec![Sample::new(); SAMPLES_MIN]);
    let grown = missing.iter().filter(|finding| finding.has_grown).count();
    let judged = FIGURES.iter().filter(|(_, growth)| *growth != Growth::Shown).count();
    anyhow::ensure!(grown == judged, "no figures: {missing:?}");
    Ok(())
}
