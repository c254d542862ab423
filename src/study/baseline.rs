//! What the features of SAEs usually do, measured on a folder of pictures.

use gguf_tools::sae::Baseline;

use super::pictures::{ActiveFeature, Item, ItemKind, Scan, none_read, read_items};
use crate::{Result, SaeSet};

/// Measures what the features of `saes`, which are those of `scan.files`, usually do on the image rows of
/// `pictures`: a baseline for each, from one pass of the model. `on_picture` is told of each picture whether it could
/// be read; one that could not is left out.
///
/// # Errors
/// Those of [`read_items`]; no picture that could be read.
pub fn measure(
    scan: &Scan<'_>,
    pictures: &[Item],
    saes: &SaeSet,
    on_picture: &mut dyn FnMut(Result<()>),
) -> Result<Vec<Baseline>> {
    let mut sums: Vec<_> = saes.iter().map(|sae| Sums::new(sae.meta().d_sae)).collect();
    let (mut n_rows, mut n_pictures) = (0, 0);
    let all: Vec<_> = pictures.iter().collect();
    read_items(scan, &all, &mut |_, result| {
        on_picture(result.map(|features| {
            n_rows += features.n_rows as u64;
            n_pictures += 1;
            for (sums, active) in sums.iter_mut().zip(&features.active) {
                sums.add(active);
            }
        }));
        Ok(())
    })?;
    if n_pictures == 0 {
        return Err(none_read(
            ItemKind::Pictures,
            &format!("`{}`", scan.dir.display()),
            pictures.len(),
        ));
    }
    let baselines = sums.iter().map(|sums| sums.baseline(n_rows, n_pictures));
    Ok(baselines.collect())
}

/// What has been seen so far of an SAE's features.
struct Sums {
    max: Vec<f64>,         // [d_sae]: largest activations, summed over pictures
    active_rows: Vec<u64>, // [d_sae]
    squares: Vec<f64>,     // [d_sae]: of largest activations, likewise
}

impl Sums {
    fn new(d_sae: usize) -> Self {
        Self {
            max: vec![0.0; d_sae],
            active_rows: vec![0; d_sae],
            squares: vec![0.0; d_sae],
        }
    }

    /// Adds the features of a picture.
    fn add(&mut self, picture: &[ActiveFeature]) {
        for active in picture {
            self.max[active.feature] += f64::from(active.max);
            self.active_rows[active.feature] += active.count as u64;
            self.squares[active.feature] += f64::from(active.max).powi(2);
        }
    }

    /// The means over so many pictures, and the shares of their image rows.
    fn baseline(&self, n_rows: u64, n_pictures: u32) -> Baseline {
        let mean = |sum: &f64| (sum / f64::from(n_pictures)) as f32;
        let share = |&n_active: &u64| (n_active as f64 / n_rows as f64) as f32;
        let usual = |(&sum, &squares): (&f64, &f64)| match sum > 0.0 {
            true => (squares / sum) as f32,
            false => 0.0,
        };
        Baseline {
            mean_max: self.max.iter().map(mean).collect(),
            frequency: self.active_rows.iter().map(share).collect(),
            usual: Some(self.max.iter().zip(&self.squares).map(usual).collect()),
            n_pictures,
        }
    }
}
