//! Active features, row by row.

/// The active features of some rows, row by row (compressed sparse rows).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activations {
    offsets: Vec<usize>, // [n_rows]: where each row ends
    features: Vec<u32>,  // [n_active], rising within a row
    values: Vec<f32>,    // [n_active], above 0
}

impl Activations {
    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.offsets.len()
    }

    /// A row's active features, by rising index, with their activations.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row_idx: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let start = row_idx
            .checked_sub(1)
            .map_or(0, |before| self.offsets[before]);
        let range = start..self.offsets[row_idx];
        let features = &self.features[range.clone()];
        let values = &self.values[range];
        features
            .iter()
            .map(|&feature| feature as usize)
            .zip(values.iter().copied())
    }

    /// A feature's activation in a row, 0 where it is not active.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn get(&self, row_idx: usize, feature: usize) -> f32 {
        let mut row = self.row(row_idx);
        row.find(|entry| entry.0 == feature)
            .map_or(0.0, |entry| entry.1)
    }

    /// Forgets all rows.
    pub(crate) fn clear(&mut self) {
        self.offsets.clear();
        self.features.clear();
        self.values.clear();
    }

    /// The number of entries in all rows.
    pub(crate) fn n_active(&self) -> usize {
        self.values.len()
    }

    /// The feature and the row of each entry, in order.
    pub(crate) fn places(&self) -> (&[u32], Vec<usize>) {
        let mut rows = Vec::with_capacity(self.values.len());
        for (row_idx, &end) in self.offsets.iter().enumerate() {
            rows.resize(end, row_idx);
        }
        (&self.features, rows)
    }

    /// Changes an entry's activation.
    pub(crate) fn set_value(&mut self, entry: usize, value: f32) {
        self.values[entry] = value;
    }

    /// Appends an active feature to the row at hand.
    pub(crate) fn push(&mut self, feature: usize, value: f32) {
        let feature = u32::try_from(feature).expect("an SAE's width is counted in 32 bits");
        self.features.push(feature);
        self.values.push(value);
    }

    /// Appends rows without active features.
    pub(crate) fn push_empty_rows(&mut self, n_rows: usize) {
        let end = self.features.len();
        self.offsets.extend(std::iter::repeat_n(end, n_rows));
    }

    /// Ends the row at hand.
    pub(crate) fn finish_row(&mut self) {
        self.offsets.push(self.features.len());
    }
}
