//! Scans and baselines without the command line.

use std::fs;
use std::path::Path;

use gguf_tools::new_file::Overwrite;
use llava_sae_cpp::baseline::measure;
use llava_sae_cpp::pictures::{Folder, ItemKind, Reading, Scan, ScanPrompt};
use llava_sae_cpp::scan::{ScanEvent, ScanFile, ScanItems, scan_items};
use llava_sae_cpp::{CancelFlag, PromptForm, SessionOptions, demo};

use crate::scan::{add, folder, rows};

/// Three pictures and one that is broken.
const NAMES: [&str; 4] = ["a.png", "b.png", "broken.png", "c.png"];

/// Calls `with` with a scan of that folder.
fn scanned<T>(dir: &Path, with: impl FnOnce(&Scan<'_>, &Folder, &CancelFlag) -> T) -> T {
    let missing = |(name, _): &(&&str, _)| !dir.join(name).exists();
    let pictures = ["00.png", "01.png", "", "08.png"];
    for (name, picture) in NAMES.iter().zip(pictures).filter(missing) {
        match picture {
            "" => fs::write(dir.join(name), "broken").expect("a file of our own"),
            picture => add(picture, dir, name),
        }
    }
    let files = demo::files().expect("the cache folder can be written");
    let options = SessionOptions {
        threads: 1,
        gpu_layers: 0,
        ..SessionOptions::default()
    };
    let cancel = CancelFlag::default();
    let scan = Scan {
        files: &files,
        options: &options,
        reading: Reading::Pictures(ScanPrompt {
            text: "Describe the image.",
            form: PromptForm::Chat,
        }),
        dir,
        jobs: 1,
        cancel: &cancel,
    };
    let found = Folder::read(dir, ItemKind::Pictures).expect("our own folder");
    assert_eq!(found.items.len(), NAMES.len());
    with(&scan, &found, &cancel)
}

fn all(scan: &Scan<'_>, found: &Folder) -> ScanItems {
    ScanItems::new(found.items.clone(), None, scan.dir)
}

fn word(event: &ScanEvent<'_>) -> String {
    match event {
        ScanEvent::Checking => "checking".to_owned(),
        ScanEvent::Reading { n_done } => format!("reading after {n_done}"),
        ScanEvent::Read => "read".to_owned(),
        ScanEvent::Skipped(_) => "skipped".to_owned(),
        ScanEvent::Joining => "joining".to_owned(),
        ScanEvent::Kept { n_done } => format!("kept {n_done}"),
    }
}

#[test]
fn a_scan_tells_what_happens_and_goes_on() {
    let dir = folder("library");
    let target = dir.join("features.parquet");
    scanned(&dir, |scan, found, cancel| {
        let mut told = Vec::new();
        let mut stop = |event: ScanEvent<'_>| {
            told.push(word(&event));
            if let ScanEvent::Read = event {
                cancel.cancel();
            }
        };
        let stopped = scan_items(
            scan,
            &all(scan, found),
            &target,
            Overwrite::Refuse,
            &mut stop,
        );
        assert!(stopped.expect_err("it was cancelled").is_interrupted());
        let kept = told.last().expect("something happened").clone();
        assert_eq!(told[..3], ["checking", "reading after 0", "read"]);
        assert!(kept.starts_with("kept ") && !target.exists(), "{told:?}");
    });
    scanned(&dir, |scan, found, _| {
        let mut told = Vec::new();
        let mut listen = |event: ScanEvent<'_>| told.push(word(&event));
        let totals = scan_items(
            scan,
            &all(scan, found),
            &target,
            Overwrite::Refuse,
            &mut listen,
        );
        let totals = totals.expect("the rest is read");
        assert_eq!((totals.n_images, totals.n_skipped), (3, 1));
        assert_eq!(told[0], "checking");
        assert!(told[1].starts_with("reading after ") && told[1] != "reading after 0");
        assert_eq!(told.last().expect("something happened"), "joining");
        let file = ScanFile::open(&target).expect("a whole file");
        assert_eq!(file.n_rows(), totals.n_rows);
    });
}

/// The means and shares of a baseline are those of the rows of a scan, in f64.
#[test]
fn a_baseline_is_what_a_scan_says() {
    let dir = folder("library-baseline");
    let table = folder("library-table").join("features.parquet");
    scanned(&dir, |scan, found, _| {
        let saes = scan.files.open_saes().expect("the demo's SAE");
        let d_sae = saes[0].meta().d_sae;
        let mut read = Vec::new();
        let mut on_picture = |result: llava_sae_cpp::Result<()>| read.push(result.is_ok());
        let baselines = measure(scan, &found.items, &saes, &mut on_picture);
        let baselines = baselines.expect("three can be read");
        let [baseline] = &baselines[..] else {
            panic!("one SAE, and {} baselines", baselines.len());
        };
        assert_eq!(read, [true, true, false, true]);
        assert_eq!(baseline.n_pictures, 3);

        let written = scan_items(
            scan,
            &all(scan, found),
            &table,
            Overwrite::Refuse,
            &mut |_| {},
        );
        written.expect("the same pictures");
        let mut sums = vec![[0.0_f64; 2]; d_sae];
        for row in rows(&table) {
            sums[row.feature][0] += f64::from(row.max);
            sums[row.feature][1] += row.count as f64;
        }
        assert!(sums.iter().filter(|sums| sums[0] > 0.0).count() > 20);
        let largest = sums.iter().map(|sums| sums[1]).fold(0.0, f64::max);
        let shares = baseline.frequency.iter().map(|&share| f64::from(share));
        // Both count rows; how many a picture has is told by the feature that is active on most.
        let n_rows = largest / shares.fold(0.0, f64::max);
        assert!(
            (n_rows / 3.0).fract().min(1.0 - (n_rows / 3.0).fract()) < 1e-4,
            "{n_rows}"
        );
        for (feature, [max, count]) in sums.into_iter().enumerate() {
            // Means and shares are rounded to f32.
            let (mean, share) = (baseline.mean_max[feature], baseline.frequency[feature]);
            assert!(
                (f64::from(mean) - max / 3.0).abs() <= 1e-6 * (1.0 + max),
                "{feature}"
            );
            assert!(
                (f64::from(share) - count / n_rows).abs() <= 1e-6,
                "{feature}"
            );
        }
    });
}
