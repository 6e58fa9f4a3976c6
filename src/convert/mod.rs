//! From a dense checkpoint to a bundle: the base ([`base`]), its tokenizer ([`vocabulary`]), and what of it is
//! stored how ([`store`]).
//!
//! Native only. Writing the bundle's files is the bundle module's work; running a model is not done here.

pub mod base;
pub mod store;
pub mod vocabulary;

pub use base::Base;
