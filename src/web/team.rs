//! Threads of the engine: workers of the page that share this memory.

use js_sys::Object;
use wasm_bindgen::prelude::*;

use crate::cpu::team;

/// Makes places for `workers` threads beside this one. What each of them starts from comes back: the compiled `module` and the
/// shared `memory`.
///
/// # Errors
/// If JavaScript can't make an object.
#[wasm_bindgen]
pub fn recruit(workers: usize) -> Result<Object, JsValue> {
    team::recruit(workers);
    let start = Object::new();
    js_sys::Reflect::set(&start, &"module".into(), &wasm_bindgen::module())?;
    js_sys::Reflect::set(&start, &"memory".into(), &wasm_bindgen::memory())?;
    Ok(start)
}

/// Takes the place `worker` of those that [`recruit`] made, and works until the worker is ended.
#[wasm_bindgen]
pub fn join(worker: usize) {
    team::join(worker);
}
