//! Text in and out: the tokenizer ([`tokenizer`], on what [`vocabulary`] leaves to the library), the chat template ([`template`]), and how a conversation
//! becomes a prompt that fits the context ([`chat`]), and the writing of tokenizer files ([`json`]).
//!
//! The same on native and in the browser. Where the files come from is not decided here.

pub mod chat;
mod documents;
pub mod json;
pub mod template;
pub mod tokenizer;
mod vocabulary;

pub use chat::{Message, Prompt, Role};
pub use documents::documents;
pub use template::Template;
pub use tokenizer::{TextStream, Tokenizer};
