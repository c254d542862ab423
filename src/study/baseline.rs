//! What an SAE's features usually do, measured on a folder of pictures.

use gguf_tools::sae::Baseline;

use super::scan::{FoundPicture, PictureFeatures, Scan, none_read, read_pictures};
use crate::Result;

/// Measures what `d_sae` features usually do on the image rows of `pictures`. `on_picture` is told of each
/// picture whether it could be read; one that could not is left out.
///
/// # Errors
/// Those of [`read_pictures`]; no picture that could be read.
pub fn measure(
    scan: &Scan<'_>,
    pictures: &[FoundPicture],
    d_sae: usize,
    on_picture: &mut dyn FnMut(Result<()>),
) -> Result<Baseline> {
    let mut sums = Sums::new(d_sae);
    let all: Vec<_> = pictures.iter().collect();
    read_pictures(scan, &all, &mut |_, result| {
        on_picture(result.map(|features| sums.add(&features)));
        Ok(())
    })?;
    let baseline = sums.baseline();
    baseline.ok_or_else(|| none_read(scan.dir, pictures.len()))
}

/// What has been seen so far.
struct Sums {
    max: Vec<f64>,         // [d_sae]: largest activations, summed over pictures
    active_rows: Vec<u64>, // [d_sae]
    n_rows: u64,
    n_pictures: u32,
}

impl Sums {
    fn new(d_sae: usize) -> Self {
        Self {
            max: vec![0.0; d_sae],
            active_rows: vec![0; d_sae],
            n_rows: 0,
            n_pictures: 0,
        }
    }

    fn add(&mut self, picture: &PictureFeatures) {
        for active in &picture.active {
            self.max[active.feature] += f64::from(active.max);
            self.active_rows[active.feature] += active.count as u64;
        }
        self.n_rows += picture.n_rows as u64;
        self.n_pictures += 1;
    }

    /// The means; none without a picture.
    fn baseline(&self) -> Option<Baseline> {
        if self.n_pictures == 0 {
            return None;
        }
        let mean = |sum: &f64| (sum / f64::from(self.n_pictures)) as f32;
        let share = |&n_active: &u64| (n_active as f64 / self.n_rows as f64) as f32;
        Some(Baseline {
            mean_max: self.max.iter().map(mean).collect(),
            frequency: self.active_rows.iter().map(share).collect(),
            n_pictures: self.n_pictures,
        })
    }
}
