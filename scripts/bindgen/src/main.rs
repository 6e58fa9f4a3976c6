//! `xylem-bindgen INPUT.wasm OUT_DIR`: writes `OUT_DIR/xylem.js` and `OUT_DIR/xylem_bg.wasm`.

use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [input, out] = arguments.as_slice() else {
        eprintln!("usage: xylem-bindgen INPUT.wasm OUT_DIR");
        return ExitCode::from(2);
    };
    let mut bindgen = Bindgen::new();
    bindgen.input_path(input).out_name("xylem").typescript(false).omit_default_module_path(false);
    bindgen.remove_name_section(true).remove_producers_section(true);
    match bindgen.web(true).and_then(|bindgen| bindgen.generate(out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xylem-bindgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}
