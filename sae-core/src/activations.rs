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

    /// Where each row ends in [`Activations::indices`] and [`Activations::data`], `[n_rows]`: `indptr` of a CSR
    /// matrix without its first 0.
    pub fn ends(&self) -> &[usize] {
        &self.offsets
    }

    /// The features of all rows, `[n_active]`, rising within a row: `indices` of a CSR matrix.
    pub fn indices(&self) -> &[u32] {
        &self.features
    }

    /// Their activations, `[n_active]`: `data` of a CSR matrix.
    pub fn data(&self) -> &[f32] {
        &self.values
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.features.clear();
        self.values.clear();
    }

    /// Forgets all rows but the first `n_rows`.
    pub fn truncate(&mut self, n_rows: usize) {
        if let Some(last) = n_rows.checked_sub(1) {
            let end = self.offsets.get(last).copied().unwrap_or(self.values.len());
            self.offsets.truncate(n_rows);
            self.features.truncate(end);
            self.values.truncate(end);
        } else {
            self.clear();
        }
    }

    /// The number of entries in all rows.
    pub fn n_active(&self) -> usize {
        self.values.len()
    }

    /// The feature and the row of each entry, in order.
    pub fn places(&self) -> (&[u32], Vec<usize>) {
        let mut rows = Vec::with_capacity(self.values.len());
        for (row_idx, &end) in self.offsets.iter().enumerate() {
            rows.resize(end, row_idx);
        }
        (&self.features, rows)
    }

    /// Changes an entry's activation.
    pub fn set_value(&mut self, entry: usize, value: f32) {
        self.values[entry] = value;
    }

    /// Appends an active feature to the row at hand.
    pub fn push(&mut self, feature: usize, value: f32) {
        let feature = u32::try_from(feature).expect("an SAE's width is counted in 32 bits");
        self.features.push(feature);
        self.values.push(value);
    }

    /// Appends rows without active features.
    pub fn push_empty_rows(&mut self, n_rows: usize) {
        let end = self.features.len();
        self.offsets.extend(std::iter::repeat_n(end, n_rows));
    }

    /// Ends the row at hand.
    pub fn finish_row(&mut self) {
        self.offsets.push(self.features.len());
    }
}
