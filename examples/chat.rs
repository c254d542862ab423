//! What chat templates make of chats, for `scripts/check-chat.py`: a line of JSON in, a line out.

use std::error::Error;
use std::io;

use llava_sae_cpp::chat::{Chat, ChatTemplate, ImageToken, LocalFiles};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    for line in io::stdin().lines() {
        let case: Value = serde_json::from_str(&line?)?;
        let text = render(&case).map_err(|error| error.to_string());
        println!(
            "{}",
            json!({"text": text.as_ref().ok(), "refused": text.as_ref().err()})
        );
    }
    Ok(())
}

fn render(case: &Value) -> llava_sae_cpp::Result<String> {
    let field = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
    let tokens = ["bos_token", "eos_token", "unk_token", "pad_token"];
    let tokens = tokens.map(|name| (name, field(name)));
    let tokens = tokens.into_iter().filter(|(_, text)| !text.is_empty());
    let image = ImageToken {
        text: field("image").leak(),
        behind: "\n",
    };
    let chat = Chat::parse(case["chat"].to_string().as_bytes(), LocalFiles::Refused)?;
    let template = ChatTemplate::new(&field("template"), tokens.collect())?;
    Ok(template.render(&chat.messages, image)?.join(image.text))
}
