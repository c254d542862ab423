//! The random features of the control.

use std::collections::HashSet;

use super::protocol::Protocol;
use crate::study::control::{Draws, with_direction};
use crate::{Error, Result, Sae};

/// Features for each picture that is described, no two alike of one picture, `[pictures][features_per_picture]`:
/// of all but those that the protocol names, and those without a direction. They are the same for the same
/// protocol and SAE on every machine.
///
/// # Errors
/// When these are too few.
pub(super) fn random_features(protocol: &Protocol, sae: &Sae) -> Result<Vec<Vec<usize>>> {
    let classes = protocol.reading.classes.iter();
    let named = classes.flat_map(|class| &class.features);
    let named = named.chain(&protocol.reading.hidden);
    let named: HashSet<_> = named.chain(&protocol.steering.feature).collect();
    let candidates = with_direction(sae).filter(|feature| !named.contains(feature));
    let candidates: Vec<_> = candidates.collect();
    let n_drawn = protocol.control.features_per_picture;
    if candidates.len() < n_drawn {
        return Err(Error::invalid(format!(
            "cannot draw {n_drawn} random features: the SAE has {} that the protocol does not name",
            candidates.len()
        )));
    }
    let mut draws = Draws::new(protocol.control.seed);
    let mut draw = |_| {
        let mut rest = candidates.clone();
        (0..n_drawn).map(|_| draws.take(&mut rest)).collect()
    };
    Ok((0..protocol.steering.pictures).map(&mut draw).collect())
}
