//! What all handlers share.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::neuronpedia::Names;
use super::options::{ServeOptions, ShownNames};
use super::prepare::Images;
use super::refusal::Refusal;
use super::runs::Runs;
use super::studies::Studies;
use crate::HookedModel;

/// A model that is served.
pub(super) struct App {
    pub(super) model: Arc<HookedModel>,
    pub(super) runs: Runs,
    pub(super) studies: Studies,
    pub(super) images: Images,
    pub(super) shown: ShownNames,
    /// What Neuronpedia calls what is served.
    pub(super) names: Names,
    pub(super) started_at: SystemTime,
    /// Runs that are computed at once.
    pub(super) parallel: usize,
    /// A place for each request that is computed or waits.
    places: Arc<Semaphore>,
    pub(super) n_places: usize,
}

/// A request's place among those that are computed or wait.
pub(super) struct Place(
    #[expect(dead_code, reason = "its end is what counts")] OwnedSemaphorePermit,
);

impl App {
    pub(super) fn new(
        model: Arc<HookedModel>,
        runs: Runs,
        studies: Studies,
        options: &ServeOptions,
    ) -> Self {
        let n_places = options.parallel.saturating_add(options.queue);
        let n_places = n_places.min(Semaphore::MAX_PERMITS);
        Self {
            names: Names::new(&model, &options.shown.model),
            model,
            runs,
            studies,
            images: Images::default(),
            shown: options.shown.clone(),
            started_at: SystemTime::now(),
            parallel: options.parallel,
            places: Arc::new(Semaphore::new(n_places)),
            n_places,
        }
    }

    /// Requests that may wait besides those that are computed.
    pub(super) fn queue(&self) -> usize {
        self.n_places - self.parallel
    }

    /// Takes a place, to be held until the answer has gone.
    ///
    /// # Errors
    /// When all are taken.
    pub(super) fn take_place(&self) -> Result<Place, Refusal> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map(Place).map_err(|_| Refusal::full())
    }
}
