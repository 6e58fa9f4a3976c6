//! Chat templates: Jinja, as models bring them along (source: transformers' `apply_chat_template`).

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};

use super::Tokenizer;
use super::chat::Message;
use crate::config::Config;
use crate::error::{Error, Result};

/// Steps that a template may take: it comes with a model from anywhere, and could loop for ever.
const FUEL: u64 = 1_000_000;
/// A longer template is nobody's.
const MAX_BYTES: usize = 1 << 20;

/// A compiled chat template.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Template {
    /// Compiles `source`; `bos` and `eos` are what it may call `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::Template`] if it is no valid template.
    pub fn new(source: &str, bos: String, eos: String) -> Result<Self> {
        if source.len() > MAX_BYTES {
            return Err(Error::Template(format!("{} bytes, at most {MAX_BYTES}", source.len())));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::Template(e.to_string()))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<(), minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|e| Error::Template(e.to_string()))?;
        Ok(Self { environment, bos, eos })
    }

    /// The template of a model, which knows its tokens.
    ///
    /// # Errors
    /// As [`Template::new`].
    pub fn for_model(source: &str, tokenizer: &Tokenizer, config: &Config) -> Result<Self> {
        let token = |id: Option<&u32>| id.and_then(|id| tokenizer.token(*id)).unwrap_or_default();
        Self::new(source, token(config.bos_token.as_ref()), token(config.eos_tokens.first()))
    }

    /// The prompt for the next answer after `messages`.
    ///
    /// # Errors
    /// [`Error::Template`] if the template refuses the messages.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        self.render_as(messages, true)
    }

    /// `messages` by themselves, with no prompt for another answer.
    ///
    /// # Errors
    /// [`Error::Template`] if the template refuses the messages.
    pub fn conversation(&self, messages: &[Message]) -> Result<String> {
        self.render_as(messages, false)
    }

    fn render_as(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let values = context! {
            messages => Serde(messages),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let template = self.environment.get_template("chat");
        template.and_then(|t| t.render(values)).map_err(|e| Error::Template(e.to_string()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::text::Role;

    /// The shape of SmolLM2's template.
    pub(crate) const CHATML: &str = "{% for message in messages %}\
        {% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    #[test]
    fn renders_a_conversation() {
        let template = Template::new(CHATML, String::new(), String::new()).unwrap();
        let text = template.render(&[message(Role::User, "Hi")]).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
        let text = template.render(&[message(Role::System, "S"), message(Role::User, "Hi")]).unwrap();
        assert!(text.starts_with("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi"));
    }

    #[test]
    fn knows_what_templates_use() {
        let source = "{{ bos_token }}{% for m in messages %}{{ m.content.strip().upper() | trim }}{% endfor %}\
                      {% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}";
        let template = Template::new(source, "<s>".into(), String::new()).unwrap();
        assert_eq!(template.render(&[message(Role::User, " a ")]).unwrap(), "<s>A");
        let error = template.render(&[message(Role::User, "a"), message(Role::User, "b")]).unwrap_err();
        assert!(error.to_string().contains("one at a time"), "{error}");
    }

    #[test]
    fn bad_templates_are_errors() {
        assert!(Template::new("{% for %}", String::new(), String::new()).is_err());
        let endless = "{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}";
        let template = Template::new(endless, String::new(), String::new()).unwrap();
        assert!(template.render(&[]).unwrap_err().to_string().contains("fuel"));
    }
}
