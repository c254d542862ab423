//! Whether the program was compiled for a lesser processor than it runs on: `cargo install` asks for any x86-64, where
//! llama.cpp's matrix products fall back to SSE2.

/// How wide a processor computes, or a program.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Vectors {
    /// What each processor of the architecture has.
    Baseline,
    /// 256 bits, with fused multiplication and addition.
    Avx2,
}

/// What to say of this program on this processor, if it computes far below what that could.
pub(super) fn advice() -> Option<&'static str> {
    advice_for(compiled_for(), here())
}

fn advice_for(compiled_for: Vectors, here: Vectors) -> Option<&'static str> {
    (compiled_for < here).then_some(
        "this program was compiled for any x86-64 processor, and is about ten times slower than it could be on this \
         one; `RUSTFLAGS=\"-C target-cpu=native\" cargo install llava-sae-cpp --locked --force` compiles it for it",
    )
}

fn compiled_for() -> Vectors {
    match cfg!(all(target_feature = "avx2", target_feature = "fma")) {
        true => Vectors::Avx2,
        false => Vectors::Baseline,
    }
}

#[cfg(target_arch = "x86_64")]
fn here() -> Vectors {
    match is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        true => Vectors::Avx2,
        false => Vectors::Baseline,
    }
}

/// Elsewhere the baseline has vectors that llama.cpp's kernels use.
#[cfg(not(target_arch = "x86_64"))]
fn here() -> Vectors {
    Vectors::Baseline
}

#[cfg(test)]
mod tests {
    use super::Vectors::{Avx2, Baseline};
    use super::{Vectors, advice, advice_for};

    #[track_caller]
    fn check(compiled_for: Vectors, here: Vectors, is_said: bool) {
        assert_eq!(advice_for(compiled_for, here).is_some(), is_said);
    }

    #[test]
    fn only_a_program_that_uses_less_than_there_is_says_so() {
        check(Baseline, Avx2, true);
        check(Avx2, Avx2, false);
        check(Baseline, Baseline, false);
        check(Avx2, Baseline, false);
    }

    #[test]
    fn a_program_with_vectors_says_nothing() {
        let has_vectors = cfg!(target_feature = "avx2") || !cfg!(target_arch = "x86_64");
        assert!(!has_vectors || advice().is_none());
    }
}
