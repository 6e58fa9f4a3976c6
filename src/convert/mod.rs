//! From a dense checkpoint to a bundle: the base ([`base`]) with its tokenizer ([`vocabulary`]), what changes of
//! it ([`recipe`]), how tensors are stored ([`store`]), and putting all that together ([`build`]).
//!
//! Native only. Running a model is not done here.

pub mod base;
pub mod build;
pub mod closed_form;
pub(crate) mod engram;
mod fit;
mod forward;
mod means;
mod product;
pub(crate) mod raw;
pub mod recipe;
pub(crate) mod regression;
pub mod store;
pub mod vocabulary;

pub use base::Base;
pub use build::{Changes, Dense, Progress};
pub use engram::Untrained;
pub use recipe::Recipe;
pub use store::Precision;
