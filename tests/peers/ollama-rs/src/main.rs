//! ollama-rs against a running `mmx serve`.
//!
//! usage: ollama-rs-client URL MODEL
//!
//! The model answers with random text (a tiny golden one), so what is compared is the protocol: whole and streamed
//! answers are equal, counts add up, forms are kept. Exit 1 at the first difference.

use std::error::Error;

use ollama_rs::Ollama;
use ollama_rs::generation::chat::ChatMessage;
use ollama_rs::generation::chat::request::ChatMessageRequest;
use ollama_rs::generation::completion::request::GenerationRequest;
use ollama_rs::generation::embeddings::request::{EmbeddingsInput, GenerateEmbeddingsRequest};
use ollama_rs::generation::parameters::{FormatType, JsonSchema, JsonStructure};
use ollama_rs::models::ModelOptions;
use tokio_stream::StreamExt;

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its schema is asked for, not its values")]
struct Form {
    yes: bool,
}

fn check(ok: bool, what: &str) -> Result<usize, String> {
    if ok { Ok(1) } else { Err(format!("failed: {what}")) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(model)) = (args.next(), args.next()) else {
        return Err("usage: ollama-rs-client URL MODEL".into());
    };
    let client = Ollama::try_new(url)?;
    let options = || ModelOptions::default().seed(5).temperature(1.2).num_predict(20);
    let ask = |text: &str| {
        ChatMessageRequest::new(model.clone(), vec![ChatMessage::user(text.to_owned())])
    };
    let mut checks = 0;

    let models = client.list_local_models().await?;
    checks += check(models.iter().any(|m| m.name == model && m.size > 0), "list_local_models")?;
    let shown = client.show_model_info(model.clone()).await?;
    checks += check(shown.model_info.contains_key("general.architecture"), "show_model_info")?;

    let whole = client.send_chat_messages(ask("你好").options(options())).await?;
    let mut stream = client.send_chat_messages_stream(ask("你好").options(options())).await?;
    let (mut text, mut last) = (String::new(), None);
    while let Some(part) = stream.next().await {
        let part = part.map_err(|()| "a part that cannot be read")?;
        text.push_str(&part.message.content);
        last = Some(part);
    }
    let last = last.ok_or("a stream without a part")?;
    checks += check(text == whole.message.content, "streamed and whole chat")?;
    checks += check(last.done && whole.done, "the last part is the end")?;
    let (end, counts) = (last.final_data.ok_or("no counts")?, whole.final_data.ok_or("no counts")?);
    checks += check(end.eval_count == counts.eval_count && counts.eval_count <= 20, "eval_count")?;
    checks += check(end.prompt_eval_count == counts.prompt_eval_count, "prompt_eval_count")?;

    let mut history = Vec::new();
    for question in ["one", "two"] {
        let request = ask(question).options(options());
        client.send_chat_messages_with_history(&mut history, request).await?;
    }
    checks += check(history.len() == 4, "a history of two turns goes back and forth")?;

    let raw = || GenerationRequest::new(model.clone(), "好").raw(true).options(options().temperature(0.0));
    let once = client.generate(raw()).await?;
    let mut stream = client.generate_stream(raw()).await?;
    let mut text = String::new();
    while let Some(parts) = stream.next().await {
        parts?.iter().for_each(|part| text.push_str(&part.response));
    }
    checks += check(text == once.response && once.eval_count.is_some(), "generate")?;

    let format = FormatType::StructuredJson(Box::new(JsonStructure::new::<Form>()));
    let shaped = client.send_chat_messages(ask("?").format(format).options(options().num_predict(100))).await?;
    let value: serde_json::Value = serde_json::from_str(&shaped.message.content)?;
    checks += check(value["yes"].is_boolean(), "format")?;

    let input = EmbeddingsInput::Multiple(vec!["hello".into(), "hello".into()]);
    let vectors = client.generate_embeddings(GenerateEmbeddingsRequest::new(model.clone(), input)).await?;
    checks += check(vectors.embeddings.len() == 2 && vectors.embeddings[0] == vectors.embeddings[1], "embeddings")?;

    let refused = client.send_chat_messages(ChatMessageRequest::new(model, Vec::new())).await;
    checks += check(refused.is_ok_and(|r| r.done), "a chat without messages loads the model")?;
    println!("clients: {checks} checks, ollama-rs 0.3.6");
    Ok(())
}
