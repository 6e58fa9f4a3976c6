//! The report as people read it.

use indicatif::HumanBytes;
use xylem::bench::Spread;
use xylem::bench::speed::PartTimes;

use super::{Gpu, Report};

/// The lines to print.
pub fn lines(report: &Report) -> Vec<String> {
    let (speed, model, memory) = (&report.speed, &report.model, &report.memory);
    let bytes = |n: u64| HumanBytes(n).to_string();
    let resident = |n: Option<u64>| n.map_or_else(|| "unknown".into(), bytes);
    let download = &report.download;
    let mut lines = vec![
        format!("model     {}, {} layers, {} of them STEM", model.name, model.n_layers, model.stem_layers),
        format!("backend   {}; {} cores", report.backend, report.machine.cores),
        format!("load      {:.0} ms", report.load_ms),
        format!(
            "memory    {} before, {} loaded, {} at the end; backend {}",
            resident(memory.start_resident_bytes),
            resident(memory.loaded_resident_bytes),
            resident(memory.end_resident_bytes),
            bytes(memory.backend_bytes)
        ),
        format!(
            "download  core {}, tokenizer and indices {}, rows of the first run {} in {} requests, of {}",
            bytes(download.core_bytes),
            bytes(download.small_bytes),
            bytes(download.rows_bytes),
            download.row_requests,
            bytes(download.tables_bytes)
        ),
        format!(
            "\n{} runs, {} tokens read, {} written: median (least to most)",
            speed.runs, speed.prompt_tokens, speed.new_tokens
        ),
        format!("prefill   {} tokens/s", spread(&speed.prefill_tokens_per_second)),
        format!(
            "first     {} ms, at first {:.1}",
            spread(&speed.first_token_ms),
            speed.warm_up.first_token_ms
        ),
        format!("decode    {} tokens/s", spread(&speed.decode_tokens_per_second)),
        format!(
            "roofline  {} of weights a token, {}/s of {}/s: {:.0}%",
            bytes(report.roofline.weight_bytes),
            bytes(report.roofline.weight_bytes_per_second as u64),
            bytes(report.roofline.limit_bytes_per_second as u64),
            report.roofline.share * 100.0
        ),
    ];
    lines.extend(
        memory
            .kv
            .iter()
            .map(|kv| format!("kv cache  {}, {} bytes a position", kv.kv_type, kv.kv_position_bytes)),
    );
    lines.extend(report.gpu.iter().flat_map(gpu));
    match (&speed.prefill, &speed.decode) {
        (Some(prefill), Some(decode)) => lines.extend(parts(prefill, decode)),
        _ => lines.push("parts     not timed".into()),
    }
    if !report.depths.is_empty() {
        let head = ["position", "step ms", "attention ms", "prefill ms a token", "backend"];
        lines.push(format!(
            "\n{:>9} {:>22} {:>13} {:>19} {:>11}",
            head[0], head[1], head[2], head[3], head[4]
        ));
    }
    let number = |ms: Option<f64>| ms.map_or_else(String::new, |ms| format!("{ms:.3}"));
    lines.extend(report.depths.iter().map(|d| {
        let (decode, held) = (spread(&d.decode_ms), bytes(d.backend_bytes));
        let (attention, prefill) = (number(d.attention_ms), number(d.prefill_ms));
        format!("{:>9} {decode:>22} {attention:>13} {prefill:>19} {held:>11}", d.position)
    }));
    lines
}

fn spread(s: &Spread) -> String {
    format!("{:.1} ({:.1}-{:.1})", s.median, s.min, s.max)
}

fn gpu(gpu: &Gpu) -> Vec<String> {
    let (work, limits) = (&gpu.work, &gpu.limits);
    let busy = gpu.busy_ms.map_or_else(String::new, |ms| format!(", busy for {ms:.2} ms of a timed one"));
    vec![
        format!(
            "gpu       {} dispatches a token, {:.1} a layer; {} bytes up, {} back",
            work.dispatches, work.dispatches_per_layer, work.upload_bytes, work.readback_bytes
        ),
        format!(
            "limits    copy {}/s, dispatch {:.1} us, round trip {:.3} ms: an empty step {:.2} ms, {:.0}% of one{busy}",
            HumanBytes(limits.copy_bytes_per_second as u64),
            limits.dispatch_us,
            limits.round_trip_ms,
            gpu.empty_step_ms,
            gpu.empty_share * 100.0
        ),
    ]
}

fn parts(prefill: &PartTimes, decode: &PartTimes) -> Vec<String> {
    let line =
        |(name, [reading, writing]): (&str, [f64; 2])| format!("{name:24} {reading:>10.4} {writing:>10.4}");
    let both = |value: fn(&PartTimes) -> f64| [value(prefill), value(decode)];
    let known = |value: fn(&PartTimes) -> Option<f64>| Some([value(prefill)?, value(decode)?]);
    let always = [
        ("in all", both(|p| p.all_ms)),
        ("row lookup", both(|p| p.rows_ms)),
        ("embedding", both(|p| p.embed_ms)),
        ("Engram layers", both(|p| p.engram_ms)),
        ("attention", both(|p| p.attention_ms)),
        ("FFN of dense layers", both(|p| p.dense_ffn_ms)),
        ("FFN of STEM layers", both(|p| p.stem_ffn_ms)),
        ("head", both(|p| p.head_ms)),
        ("candidates", both(|p| p.candidates_ms)),
        ("other", both(|p| p.other_ms)),
    ];
    let where_there = [
        ("a dense FFN", known(|p| p.a_dense_ffn_ms)),
        ("a STEM FFN", known(|p| p.a_stem_ffn_ms)),
        ("STEM to dense", known(|p| p.stem_to_dense_ffn)),
        ("  with its row's lookup", known(|p| p.stem_with_rows_to_dense_ffn)),
    ];
    let where_there = where_there.into_iter().filter_map(|(name, values)| Some((name, values?)));
    let head = format!("\n{:24} {:>10} {:>10}", "ms a token", "reading", "writing");
    [head].into_iter().chain(always.into_iter().chain(where_there).map(line)).collect()
}
