//! llama.cpp's ids on converted vocabularies.

use gguf_tools::gguf::{Gguf, TensorType};
use llava_sae_cpp::llama::AddBos;

use crate::fixture::{Fixture, exact_options};
use crate::llama_tokenizer::{LlamaTokenizer, texts};

/// The other half of `gguf-tools/tests/llava/tokens.rs`, where the same texts have the same ids as
/// by Hugging Face's `tokenizers`.
#[test]
fn ids_of_random_texts_are_those_of_the_reference() {
    for fixture in [Fixture::Demo, Fixture::Tiny] {
        let session = fixture.session(TensorType::F32, exact_options());
        let dir = fixture.converted(TensorType::F32);
        let file = Gguf::open(&dir.join("model-f32.gguf")).expect("converted");
        let reference = LlamaTokenizer::new(&file);
        for text in texts(4000) {
            let ids = session.language_model().tokenize(&text, AddBos::No);
            let ids: Vec<_> = ids
                .expect("tokenised")
                .iter()
                .map(|&id| id as usize)
                .collect();
            assert_eq!(ids, reference.tokenize(&text), "{text:?}");
        }
    }
}
