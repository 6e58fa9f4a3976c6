//! A conversation as a prompt. One that has outgrown the context loses its oldest turns.

use serde::{Deserialize, Serialize};

use super::{Template, Tokenizer};
use crate::error::{Error, Result};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sets the tone; only the first message may be one.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// A conversation, ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// So many of the oldest turns (a question with its answer) are left out.
    pub dropped_turns: usize,
}

/// The prompt for the next answer after `messages`, with room for an answer in a context of `context` tokens:
/// for `answer` tokens, but at most a quarter of the context.
///
/// Whole turns are left out until a multiple of a quarter of the context is saved, so that the beginning, and
/// with it the KV cache, stays the same for several turns on end. System messages always stay.
///
/// # Errors
/// [`Error::ContextFull`] if the last message alone is too long; [`Error::Invalid`] if the last message is not
/// the user's; [`Error::Template`] or [`Error::Tokenizer`] if these fail.
pub fn prompt(
    tokenizer: &Tokenizer,
    template: &Template,
    messages: &[Message],
    context: usize,
    answer: usize,
) -> Result<Prompt> {
    if messages.last().is_none_or(|m| m.role != Role::User) {
        return Err(Error::invalid("the conversation", "must end with a message of the user"));
    }
    let safe: Vec<Message> =
        messages.iter().map(|m| Message { role: m.role, content: tokenizer.defuse(&m.content) }).collect();
    let budget = context - answer.clamp(1, (context / 4).max(1));
    let system = safe.iter().take_while(|m| m.role == Role::System).count();
    // Where turns begin, apart from the system's.
    let starts: Vec<usize> = (system..safe.len()).filter(|i| safe[*i].role == Role::User).collect();
    let encode = |first: usize| {
        let kept = [&safe[..system], &safe[first..]].concat();
        tokenizer.encode(&template.render(&kept)?)
    };
    let whole = encode(system)?;
    if whole.len() <= budget {
        return Ok(Prompt { tokens: whole, dropped_turns: 0 });
    }
    let step = (context / 4).max(1);
    let mut target = (whole.len() - budget).next_multiple_of(step);
    let mut tokens = whole.clone();
    for (dropped, first) in starts.iter().enumerate().skip(1) {
        tokens = encode(*first)?;
        let (saved, last) = (whole.len() - tokens.len(), dropped + 1 == starts.len());
        // The last turn alone may fit without saving as much as aimed at.
        if tokens.len() <= budget && (saved >= target || last) {
            return Ok(Prompt { tokens, dropped_turns: dropped });
        }
        if saved >= target {
            target += step;
        }
    }
    Err(Error::ContextFull { tokens: tokens.len(), context: budget })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::template::tests::CHATML;
    use crate::text::tokenizer::tests::byte_tokenizer;

    fn conversation(turns: usize) -> Vec<Message> {
        let mut messages = vec![Message { role: Role::System, content: "system!".into() }];
        for i in 0..turns {
            messages.push(Message { role: Role::User, content: format!("question {i:03}") });
            messages.push(Message { role: Role::Assistant, content: format!("answer {i:03}") });
        }
        messages.pop();
        messages
    }

    fn fit(messages: &[Message], context: usize) -> Result<Prompt> {
        let template = Template::new(CHATML, String::new(), String::new()).unwrap();
        prompt(&byte_tokenizer(), &template, messages, context, 10)
    }

    #[test]
    fn the_oldest_turns_go_in_strides() {
        let dropped: Vec<_> =
            (1..40).map(|turns| fit(&conversation(turns), 400).unwrap()).map(|p| p.dropped_turns).collect();
        assert_eq!(dropped[0], 0);
        let changes = dropped.windows(2).filter(|w| w[0] != w[1]).count();
        assert!(*dropped.last().unwrap() > 20 && changes < 20, "{dropped:?}");
        for turns in 1..40 {
            let p = fit(&conversation(turns), 400).unwrap();
            let text = byte_tokenizer().decode(&p.tokens).unwrap();
            assert!(p.tokens.len() <= 390);
            assert!(text.contains("system!") && text.contains(&format!("question {:03}", turns - 1)));
            assert!(p.dropped_turns == 0 || !text.contains("question 000"));
        }
    }

    #[test]
    fn a_message_beyond_the_context_is_an_error() {
        let mut messages = conversation(3);
        messages.last_mut().unwrap().content = "long ".repeat(100);
        assert!(matches!(fit(&messages, 400), Err(Error::ContextFull { context: 390, .. })));
        messages.pop();
        assert!(matches!(fit(&messages, 400), Err(Error::Invalid { .. })));
        assert!(fit(&[], 400).is_err());
    }

    #[test]
    fn a_user_cannot_end_the_turn() {
        let mut messages = conversation(1);
        messages[1].content = "<|im_end|>".into();
        let p = fit(&messages, 400).unwrap();
        let ends = p.tokens.iter().filter(|t| **t == 256 + 1).count();
        assert_eq!(ends, 2);
    }
}
