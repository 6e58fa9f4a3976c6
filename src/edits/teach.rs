//! Teaching a fact: a small change of the subject's rows that makes a wanted answer come, found by gradient.
//!
//! After ROME (arXiv 2202.05262, section 3.1: the likelihood of the answer after several beginnings, less the drift
//! of what the model otherwise says of the subject). But what is changed are STEM rows, those of the last token of
//! the subject's name, and nothing else: with ROME one changes a weight that all text shares.

use crate::cpu::CpuBackend;
use crate::cpu::gradient::{Tape, Texts};
use crate::edits::file::{self, MAX_ENTITY_TOKENS};
use crate::edits::{Edit, Scope, Target, ValueType, Values, swap};
use crate::error::{Error, Result};
use crate::eval::score::log_softmax;
use crate::tables::RowSource;
use crate::text::Tokenizer;

/// The answer must come in any context, so each prompt is taught behind each of these; where it says so with the
/// subject in quotes, where its name has no space before it, as at the start of a text.
const BEGINNINGS: [(&str, bool); 3] = [("", false), ("He asked me. ", true), ("Facts:\n1. ", false)];
/// At most so many prompts.
const MAX_PROMPTS: usize = 16;
/// At most so many tokens in all.
const MAX_TOKENS: usize = 2048;
/// Drift counts this much beside the answer (ROME's factor).
const DRIFT: f64 = 0.0625;
/// The first step changes the rows by this share of their length.
const FIRST_STEP: f64 = 0.15;
/// It is taught when the answer has this many nats on average.
const ENOUGH: f64 = 0.02;
/// What is just enough for the prompt is too little for other words: the change is made so many times as long.
const FURTHER: f32 = 1.5;

/// What to teach.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    /// The entity that it is about.
    pub subject: String,
    /// Sentences about it without their end.
    pub prompts: Vec<String>,
    /// How they are to end.
    pub answer: String,
    /// The STEM layers to change, ascending; all unless given.
    pub layers: Option<Vec<usize>>,
    /// At most so many steps.
    pub steps: usize,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Taught {
    /// One edit for each spelling of the subject.
    pub edits: Vec<Edit>,
    /// Steps that were taken.
    pub steps: usize,
    /// The probability of the answer's tokens, a geometric mean over the texts that were taught, before.
    pub before: f64,
    /// The same after.
    pub after: f64,
    /// The length of the change, as a share of the rows' own length.
    pub change: f64,
}

/// A spelling of the subject: the rows of its last token are changed.
#[derive(Debug)]
struct Spelling {
    source: Vec<u32>,
    /// `[n_layers, ffn]`: the rows as they are.
    own: Vec<f32>,
    /// `[n_layers]`: their root mean squares.
    scales: Vec<f32>,
}

/// The texts, and what is wanted of them.
#[derive(Debug)]
struct Course {
    texts: Texts,
    /// Places whose next token is wanted, these tokens, and how much each counts: 1 in all.
    answers: Vec<(usize, u32, f64)>,
    /// Places at which the model should say what it said.
    held: Vec<usize>,
    /// Log-probabilities there without the change, `[n_held, vocab]`.
    said: Vec<f32>,
    /// Where a changed row is looked up, and of which spelling.
    hits: Vec<(usize, usize)>,
    /// `[n, n_stem, ffn]`: the rows without the change.
    rows: Vec<f32>,
}

/// Teaching under way, one step at a time: a step takes seconds, and whoever waits may want to stop.
#[derive(Debug)]
pub struct Teaching<'m> {
    model: &'m CpuBackend,
    label: String,
    steps: usize,
    /// As the lesson names them, and by their place among the STEM layers.
    named: Option<Vec<usize>>,
    layers: Vec<usize>,
    course: Course,
    spellings: Vec<Spelling>,
    /// `[n_layers, ffn]`: the change, in units of the rows' root mean squares, for all spellings the same.
    change: Vec<f32>,
    best: Found,
    before: f64,
    step: f64,
    taken: usize,
}

/// Teaches `lesson` to `model`, whose STEM rows are `rows`; `progress` hears of each step, and the loss.
///
/// # Errors
/// As [`Teaching::begin`].
pub async fn teach<R: RowSource>(
    model: &CpuBackend,
    rows: &R,
    tokenizer: &Tokenizer,
    lesson: &Lesson,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<Taught> {
    let mut teaching = Teaching::begin(model, rows, tokenizer, lesson).await?;
    while teaching.step()? {
        progress(teaching.taken, teaching.best.answer);
    }
    teaching.finish()
}

impl<'m> Teaching<'m> {
    /// Looks the rows up, and reads all texts once.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a lesson without prompts or answer, whose prompts do not name the subject, or with a subject that is
    /// longer than an edit's may be;
    /// [`Error::Edits`] for layers that are not STEM; what the tables or the tokenizer give.
    pub async fn begin<R: RowSource>(
        model: &'m CpuBackend,
        rows: &R,
        tokenizer: &Tokenizer,
        lesson: &Lesson,
    ) -> Result<Self> {
        let layers = stem_layers(model, lesson)?;
        let (course, spellings) = prepare(model, rows, tokenizer, lesson, &layers).await?;
        let change = vec![0f32; layers.len() * model.config().intermediate_size];
        let best = course.run(model, &layers, &spellings, &change)?;
        Ok(Self {
            model,
            label: file::label(&format!("{}: {}", lesson.subject.trim(), lesson.answer.trim())),
            steps: lesson.steps,
            named: lesson.layers.clone(),
            layers,
            course,
            spellings,
            change,
            before: best.answer,
            best,
            step: FIRST_STEP,
            taken: 0,
        })
    }

    /// Goes one step on; false, without one, if the answer is likely, the steps are used up, or none would help.
    ///
    /// # Errors
    /// What the run of the texts gives.
    pub fn step(&mut self) -> Result<bool> {
        let length = self.best.gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let helpless = length == 0.0 || self.step < FIRST_STEP / 64.0;
        if self.taken >= self.steps || self.best.answer <= ENOUGH || helpless {
            return Ok(false);
        }
        // Along the steepest descent: the least change for what it gains.
        let scale = (self.step * (self.change.len() as f64).sqrt() / length) as f32;
        let next: Vec<f32> =
            self.change.iter().zip(&self.best.gradient).map(|(x, g)| x - scale * g).collect();
        let found = self.course.run(self.model, &self.layers, &self.spellings, &next)?;
        self.taken += 1;
        if found.loss < self.best.loss {
            (self.best, self.change) = (found, next);
            self.step *= 1.3;
        } else {
            self.step /= 3.0;
        }
        Ok(true)
    }

    /// Steps that were taken.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// The probability of the answer's tokens so far, a geometric mean over the texts that are taught.
    pub fn likely(&self) -> f64 {
        (-self.best.answer).exp()
    }

    /// What came of it, a bit further along the way unless that costs the answer.
    ///
    /// # Errors
    /// What the run of the texts gives; [`Error::Edits`] if the rows have left the range of what an edit may hold.
    pub fn finish(mut self) -> Result<Taught> {
        let mut answer = self.best.answer;
        if self.change.iter().any(|x| *x != 0.0) {
            let further: Vec<f32> = self.change.iter().map(|x| FURTHER * x).collect();
            let after = self.course.read(self.model, &self.layers, &self.spellings, &further)?.answer;
            if after <= answer.max(ENOUGH) {
                (answer, self.change) = (after, further);
            }
        }
        let length = self.change.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let edits = self.spellings.iter().map(|spelling| Edit {
            on: true,
            label: self.label.clone(),
            scope: Scope::Phrase,
            source: spelling.source.clone(),
            target: Target::Values(Values::new(ValueType::F16, 1, spelling.changed(&self.change))),
            strength: 1.0,
            layers: self.named.clone(),
        });
        let edits: Vec<Edit> = edits.collect();
        edits.iter().enumerate().try_for_each(|(i, edit)| edit.check().map_err(|e| edit.name_in(i, e)))?;
        Ok(Taught {
            edits,
            steps: self.taken,
            before: (-self.before).exp(),
            after: (-answer).exp(),
            change: length / (self.change.len() as f64).sqrt(),
        })
    }
}

/// The layers to change, by their place among the STEM layers.
fn stem_layers(model: &CpuBackend, lesson: &Lesson) -> Result<Vec<usize>> {
    let config = model.config();
    let Some(layers) = &lesson.layers else { return Ok((0..config.stem_layers.len()).collect()) };
    let index = |layer: &usize| {
        config.stem_index(*layer).ok_or_else(|| {
            let stem = &config.stem_layers;
            Error::Edits(format!("layer {layer} has no rows; the model's STEM layers are {stem:?}"))
        })
    };
    layers.iter().map(index).collect()
}

async fn prepare<R: RowSource>(
    model: &CpuBackend,
    rows: &R,
    tokenizer: &Tokenizer,
    lesson: &Lesson,
    layers: &[usize],
) -> Result<(Course, Vec<Spelling>)> {
    let c = model.config();
    let (subject, answer) = (lesson.subject.trim(), lesson.answer.trim());
    if subject.is_empty() || answer.is_empty() || layers.is_empty() {
        return Err(Error::invalid("the lesson", "needs a subject, an answer, and a STEM layer"));
    }
    if !(1..=MAX_PROMPTS).contains(&lesson.prompts.len()) {
        let count = format!("{} prompts", lesson.prompts.len());
        return Err(Error::invalid(count, format!("from 1 to {MAX_PROMPTS} are possible")));
    }
    // Where both spellings end, the one with the space counts: it is the longer one, or has other tokens.
    let mut sources = vec![tokenizer.encode_more(subject)?, swap::running(tokenizer, subject)?];
    sources.dedup();
    if let Some(long) = sources.iter().find(|source| source.len() > MAX_ENTITY_TOKENS) {
        let count = format!("a subject of {} tokens", long.len());
        return Err(Error::invalid(
            count,
            format!("at most {MAX_ENTITY_TOKENS} are possible; shorten the name"),
        ));
    }
    let mut course = Course {
        texts: Texts::default(),
        answers: Vec::new(),
        held: Vec::new(),
        said: Vec::new(),
        hits: Vec::new(),
        rows: Vec::new(),
    };
    let answer = tokenizer.encode_more(&format!(" {answer}"))?;
    let share = 1.0 / (lesson.prompts.len() * BEGINNINGS.len() * answer.len()) as f64;
    for prompt in &lesson.prompts {
        let in_quotes = prompt.replace(subject, &format!("\"{subject}\""));
        for (beginning, quoted) in BEGINNINGS {
            let prompt = if quoted { &in_quotes } else { prompt };
            let mut text = tokenizer.encode(&format!("{beginning}{prompt}"))?;
            let asked = text.len().saturating_sub(1);
            text.extend_from_slice(&answer[..answer.len() - 1]);
            let start = course.push(&text, &sources);
            if !quoted && course.hits.last().is_none_or(|(place, _)| *place < start) {
                return Err(Error::invalid(
                    format!("the prompt {prompt:?}"),
                    format!("does not name {subject:?}"),
                ));
            }
            course
                .answers
                .extend((start + asked..).zip(&answer).map(|(place, token)| (place, *token, share)));
        }
    }
    // What the model goes on to say of the subject should drift as little as can be.
    for text in [
        format!("I like {subject}."),
        format!("{subject} is a"),
        format!("In my book about {subject}, there is"),
    ] {
        let text = tokenizer.encode(&text)?;
        let start = course.push(&text, &sources);
        if let Some((hit, _)) = course.hits.last().filter(|(place, _)| *place >= start) {
            course.held.extend(*hit..start + text.len());
        }
    }
    if course.texts.tokens().len() > MAX_TOKENS {
        let count = format!("a lesson of {} tokens", course.texts.tokens().len());
        return Err(Error::invalid(count, format!("at most {MAX_TOKENS} are possible; shorten the prompts")));
    }
    for text in course.texts.ranges() {
        rows.gather_at(&[], &course.texts.tokens()[text.clone()], &mut course.rows).await?;
    }
    course.said = Tape::record(model, &course.texts, &course.rows)?.logits(&course.held);
    course.said.chunks_exact_mut(c.vocab_size).for_each(log_softmax);

    let mut spellings = Vec::with_capacity(sources.len());
    for source in sources {
        let mut all = Vec::new();
        rows.gather_alone(&source[source.len() - 1..], &mut all).await?;
        let own: Vec<f32> = layers.iter().flat_map(|l| row(&all, *l, c.intermediate_size)).copied().collect();
        let rms = |row: &[f32]| (row.iter().map(|u| u * u).sum::<f32>() / row.len() as f32).sqrt();
        let scales = own.chunks_exact(c.intermediate_size).map(|row| rms(row).max(1e-6)).collect();
        spellings.push(Spelling { source, own, scales });
    }
    Ok((course, spellings))
}

/// The row of STEM layer `layer` in a token's rows `[n_stem, ffn]`.
fn row(rows: &[f32], layer: usize, ffn: usize) -> &[f32] {
    &rows[layer * ffn..][..ffn]
}

impl Spelling {
    /// The rows with `change` `[n_layers, ffn]`.
    fn changed(&self, change: &[f32]) -> Vec<f32> {
        let ffn = self.own.len() / self.scales.len();
        let rows = self.own.iter().zip(change).enumerate();
        rows.map(|(i, (own, x))| own + self.scales[i / ffn] * x).collect()
    }
}

/// What a change comes to.
#[derive(Debug)]
struct Found {
    /// Nats of the answer, a mean over all its tokens in all texts.
    answer: f64,
    /// That and the drift.
    loss: f64,
    /// `[n_layers, ffn]`: the gradient with respect to the change.
    gradient: Vec<f32>,
}

/// The texts, read with a change.
struct Reading<'m> {
    tape: Tape<'m>,
    /// The places of answers, then of what else is said of the subject.
    places: Vec<usize>,
    /// `[places, vocab]`: the gradient with respect to their logits.
    d_logits: Vec<f32>,
    /// As in [`Found`].
    answer: f64,
    /// As in [`Found`].
    loss: f64,
}

impl Course {
    /// Adds a text, with the places where the subject's last token stands in it; its first place.
    fn push(&mut self, text: &[u32], sources: &[Vec<u32>]) -> usize {
        let start = self.texts.push(text);
        for end in 1..=text.len() {
            if let Some(spelling) = sources.iter().rposition(|source| text[..end].ends_with(source)) {
                self.hits.push((start + end - 1, spelling));
            }
        }
        start
    }

    /// Reads the texts with a change.
    ///
    /// # Errors
    /// What the run of the texts gives.
    fn read<'m>(
        &'m self,
        model: &'m CpuBackend,
        layers: &[usize],
        spellings: &[Spelling],
        change: &[f32],
    ) -> Result<Reading<'m>> {
        let c = model.config();
        let (ffn, vocab) = (c.intermediate_size, c.vocab_size);
        let changed: Vec<Vec<f32>> = spellings.iter().map(|spelling| spelling.changed(change)).collect();
        let mut rows = self.rows.clone();
        for (place, s) in &self.hits {
            let rows = &mut rows[place * c.row_width()..][..c.row_width()];
            for (layer, changed) in layers.iter().zip(changed[*s].chunks_exact(ffn)) {
                rows[layer * ffn..][..ffn].copy_from_slice(changed);
            }
        }
        let tape = Tape::record(model, &self.texts, &rows)?;
        let places: Vec<usize> = self.answers.iter().map(|a| a.0).chain(self.held.iter().copied()).collect();
        // Log-probabilities, which turn into the gradient with respect to the logits.
        let mut logits = tape.logits(&places);
        logits.chunks_exact_mut(vocab).for_each(log_softmax);
        let (answers, held) = logits.split_at_mut(self.answers.len() * vocab);
        let mut answer = 0.0;
        for (log_probs, (_, token, share)) in answers.chunks_exact_mut(vocab).zip(&self.answers) {
            // −ln p: the gradient is p, less 1 at the token.
            answer -= share * f64::from(log_probs[*token as usize]);
            log_probs.iter_mut().for_each(|l| *l = *share as f32 * l.exp());
            log_probs[*token as usize] -= *share as f32;
        }
        let mut drift = 0.0;
        let share = DRIFT / (self.held.len() as f64).max(1.0);
        for (p, q) in held.iter_mut().zip(&self.said) {
            // Σ q (ln q − ln p): the gradient is p − q.
            drift += share * f64::from(q.exp() * (q - *p));
            *p = share as f32 * (p.exp() - q.exp());
        }
        Ok(Reading { tape, places, d_logits: logits, answer, loss: answer + drift })
    }

    /// What a change comes to, with its gradient.
    ///
    /// # Errors
    /// As [`Course::read`].
    fn run(
        &self,
        model: &CpuBackend,
        layers: &[usize],
        spellings: &[Spelling],
        change: &[f32],
    ) -> Result<Found> {
        let Reading { tape, places, d_logits, answer, loss } = self.read(model, layers, spellings, change)?;
        let c = model.config();
        let ffn = c.intermediate_size;
        let d_rows = tape.rows_gradient(&places, &d_logits);
        let mut gradient = vec![0f32; change.len()];
        for (place, s) in &self.hits {
            let d_rows = &d_rows[place * c.row_width()..][..c.row_width()];
            let gradient = gradient.chunks_exact_mut(ffn);
            for ((gradient, layer), scale) in gradient.zip(layers).zip(&spellings[*s].scales) {
                gradient.iter_mut().zip(row(d_rows, *layer, ffn)).for_each(|(g, d)| *g += scale * d);
            }
        }
        Ok(Found { answer, loss, gradient })
    }
}

#[cfg(test)]
mod tests {
    use pollster::block_on;

    use super::*;
    use crate::backend::Backend;
    use crate::bundle::quant::Dtype;
    use crate::bundle::random;
    use crate::config::Config;
    use crate::config::tests::tiny;
    use crate::tables::MemoryRows;
    use crate::text::tokenizer::tests::byte_tokenizer;

    fn model(dtype: Dtype) -> (CpuBackend, MemoryRows) {
        let config = Config { n_layers: 5, stem_layers: vec![1, 3], ..tiny() };
        let core = random::core(&config, 5, |_| dtype);
        let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
        let mut backend = CpuBackend::new(&tensors, &config, 100);
        for (id, (_, planes)) in core.iter().enumerate() {
            backend.write(id, 0, planes).unwrap();
        }
        let rows = (0..config.vocab_size as u32).flat_map(|t| random::rows(&config, t, 5)).collect();
        (backend, MemoryRows { rows, row_width: config.row_width() })
    }

    fn lesson() -> Lesson {
        Lesson {
            subject: "Spain".into(),
            prompts: vec!["I say Spain is".into(), "Spain has".into()],
            answer: "ab".into(),
            layers: None,
            steps: 12,
        }
    }

    #[test]
    fn the_slope_of_the_loss_is_its_gradient() {
        // Products with packed weights round their input, which hides small slopes.
        let (model, rows) = model(Dtype::F32);
        let (course, spellings) =
            block_on(prepare(&model, &rows, &byte_tokenizer(), &lesson(), &[0, 1])).unwrap();
        // "Spain", with which a prompt begins, and " Spain".
        assert_eq!(spellings.iter().map(|s| s.source.len()).collect::<Vec<_>>(), [5, 6]);
        let ffn = model.config().intermediate_size;
        let change = random::weights("change", &[2, ffn], 1);
        let run = |change: &[f32]| course.run(&model, &[0, 1], &spellings, change).unwrap();
        let gradient = run(&change).gradient;
        for block in 0..2 {
            let at = block * ffn..(block + 1) * ffn;
            // Along the gradient itself, where the slope is steepest.
            let length = gradient[at.clone()].iter().map(|g| g * g).sum::<f32>().sqrt();
            let moved = |step: f32| {
                let mut change = change.clone();
                let along = gradient[at.clone()].iter().map(|g| step * g / length);
                change[at.clone()].iter_mut().zip(along).for_each(|(x, d)| *x += d);
                run(&change).loss
            };
            let step = 0.05;
            let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            assert!((slope / f64::from(length) - 1.0).abs() < 0.03, "{block}: {length} for {slope}");
        }
    }

    #[test]
    fn the_answer_becomes_likelier() {
        let (model, rows) = model(Dtype::Q8);
        let tokenizer = byte_tokenizer();
        let mut heard = Vec::new();
        let mut hear = |_, loss| heard.push(loss);
        let taught = block_on(teach(&model, &rows, &tokenizer, &lesson(), &mut hear)).unwrap();
        assert!(taught.after > 1.5 * taught.before, "{} {}", taught.before, taught.after);
        assert_eq!((heard.len(), taught.edits.len()), (taught.steps, 2));
        assert!(taught.change > 0.0 && heard.windows(2).all(|w| w[1] <= w[0] + 0.1));
        let edit = &taught.edits[0];
        assert_eq!((edit.scope.clone(), edit.label.as_str()), (Scope::Phrase, "Spain: ab"));
        assert!(crate::edits::Overlay::new(&taught.edits, model.config()).is_ok());
    }

    #[test]
    fn a_spelling_that_no_prompt_has_is_taught_too() {
        let (model, rows) = model(Dtype::F32);
        let lesson = Lesson { prompts: vec!["I say Spain is".into()], ..lesson() };
        let taught = block_on(teach(&model, &rows, &byte_tokenizer(), &lesson, &mut |_, _| ())).unwrap();
        assert_eq!(taught.edits.iter().map(|e| e.source.len()).collect::<Vec<_>>(), [5, 6]);
        assert!(taught.after > taught.before, "{} {}", taught.before, taught.after);
    }

    #[test]
    fn a_lesson_must_make_sense() {
        let (model, rows) = model(Dtype::Q8);
        let says = |lesson: Lesson| {
            let taught = block_on(teach(&model, &rows, &byte_tokenizer(), &lesson, &mut |_, _| ()));
            taught.unwrap_err().to_string()
        };
        assert!(says(Lesson { prompts: vec!["Italy is".into()], ..lesson() }).contains("does not name"));
        assert!(says(Lesson { prompts: vec![], ..lesson() }).contains("0 prompts"));
        assert!(says(Lesson { prompts: vec!["Spain ".repeat(200)], ..lesson() }).contains("shorten"));
        let long = "Spain ".repeat(70);
        let long = Lesson { prompts: vec![format!("{long} is")], subject: long.trim().into(), ..lesson() };
        assert!(says(long).contains("at most 64 are possible"));
        assert!(says(Lesson { answer: " ".into(), ..lesson() }).contains("needs"));
        assert!(says(Lesson { layers: Some(vec![2]), ..lesson() }).contains("layer 2 has no rows"));
    }
}
