//! The random features of the control.

use std::collections::HashSet;

use super::protocol::Protocol;
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
    let norms = sae.decoder_norm().iter().enumerate();
    let candidates: Vec<_> = norms
        .filter(|(feature, norm)| **norm > 0.0 && !named.contains(feature))
        .map(|(feature, _)| feature)
        .collect();
    let n_drawn = protocol.control.features_per_picture;
    if candidates.len() < n_drawn {
        return Err(Error::invalid(format!(
            "cannot draw {n_drawn} random features: the SAE has {} that the protocol does not name",
            candidates.len()
        )));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&protocol.control.seed.to_le_bytes());
    let mut stream = hasher.finalize_xof();
    let mut draw = |_| {
        let mut rest = candidates.clone();
        let mut next = |_| {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            let place = u64::from_le_bytes(bytes) % rest.len() as u64;
            rest.swap_remove(place as usize)
        };
        (0..n_drawn).map(&mut next).collect()
    };
    Ok((0..protocol.steering.pictures).map(&mut draw).collect())
}
