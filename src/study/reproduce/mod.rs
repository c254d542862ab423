//! A published experiment on a model, repeated on anyone's pictures: whether its claims hold.
//!
//! ```text
//! protocol.rs: classes, published features, prompts, strengths, thresholds ─┐
//! folders of pictures ─► measure.rs: features of each, steered captions ────┴─► verdict.rs ─► report.rs
//! ```
//!
//! Verdicts are arithmetic on what was measured, which knows no model.

mod control;
mod measure;
mod protocol;
mod report;
mod verdict;

pub use measure::{ClassPictures, Event, Experiment};
pub use protocol::{
    Class, Control, ExpectedSae, Protocol, ProtocolPrompt, Reading, SteeredFeature, only_sae,
};
pub use report::{File, Machine, PicturesOfClass, PromptReport, ReadToken, Report, Settings};
pub use verdict::{
    Caption, Claim, ClaimKind, ClassReading, ControlCaption, PublishedFeature, SteeredCaption,
    SteeredPicture, TopFeature, Verdict,
};
