//! Texts of several documents in one file.

use super::Tokenizer;
use crate::error::Result;

/// The line between documents.
pub const SEPARATOR: &str = "<|endoftext|>";

/// The documents of `text` as tokens, each cut to `context`; those of one token or none are left out.
///
/// # Errors
/// [`Error::Tokenizer`](crate::Error::Tokenizer).
pub fn documents(text: &str, tokenizer: &Tokenizer, context: usize) -> Result<Vec<Vec<u32>>> {
    let mut documents = Vec::new();
    let mut document = String::new();
    for line in text.split_inclusive('\n').chain([SEPARATOR]) {
        if line.trim_end() != SEPARATOR {
            document += line;
            continue;
        }
        let mut tokens = tokenizer.encode(document.trim_matches('\n'))?;
        tokens.truncate(context);
        if tokens.len() > 1 {
            documents.push(tokens);
        }
        document.clear();
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::byte_tokenizer;

    #[test]
    fn documents_end_at_lines_of_their_own() {
        let text =
            "\none\n<|endoftext|>\n\n<|endoftext|>\nt <|endoftext|>\nwo\n<|endoftext|>\nx\n<|endoftext|>\n";
        let tokenizer = byte_tokenizer();
        let found = documents(text, &tokenizer, 17).unwrap();
        let texts: Vec<_> = found.iter().map(|d| tokenizer.decode(d).unwrap()).collect();
        assert_eq!(texts, ["one", "t <|endoftext|>\nw"]);
    }
}
