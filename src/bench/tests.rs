//! On random bundles: counts by hand, and equal tokens and logits wherever rows come from.

use std::rc::Rc;

use futures::future::join_all;
use pollster::block_on;

use super::answer::Source;
use super::replay::{Growth, replay};
use super::{Bench, Link, Linked, Spread, TextRecords};
use crate::backend::{MAX_STEP_TOKENS, Output, Want};
use crate::bundle::Bundle;
use crate::config::Config;
use crate::config::tests::tiny;
use crate::cpu::CpuBackend;
use crate::session::Session;
use crate::tables::tests::bundle;
use crate::tables::{FileTransport, Policy, RowSource, Transport};

const FAST: Link = Link { mbit: 10_000.0, round_trip_ms: 2.0 };

fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn random(config: &Config) -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle");
    bundle(&path, config);
    (dir, Bundle::open(path).unwrap())
}

fn backend(bundle: &Bundle) -> CpuBackend {
    let manifest = bundle.manifest();
    let mut backend = CpuBackend::new(&manifest.core.tensors, &manifest.config, 64);
    bundle.load_core(&mut backend, |_, _| ()).unwrap();
    backend
}

#[test]
fn hits_are_counted_as_by_hand() {
    let (_dir, bundle) = random(&tiny());
    let layout = bundle.tables().unwrap().unwrap().layout().clone();
    let page_bytes = layout.table().records_per_page * layout.table().record_bytes();
    // Three tokens on pages of their own; the text is a a b c a | a b.
    let mut pages = Vec::new();
    let mut own = (0..300).filter(|t| {
        let page = layout.locate(*t).unwrap().0;
        let new = !pages.contains(&page) && layout.records(page).len() == layout.table().records_per_page;
        pages.push(page);
        new
    });
    let [a, b, c] = [(); 3].map(|()| own.next().unwrap());
    let documents = [vec![a, a, b, c, a], vec![a, b]];
    let run = |policy, room: usize, step| {
        let tables = bundle.tables().unwrap().unwrap();
        let found = block_on(replay(&tables, policy, room * page_bytes, &documents, step)).unwrap();
        assert_eq!(found.memory + found.fetched, found.unique_rows);
        assert_eq!((found.rows, found.budget), (7, (room * page_bytes) as u64));
        assert!((found.bytes_per_token - found.bytes_fetched as f64 / 7.0).abs() < 1e-9);
        (found.memory, found.fetched, found.requests, found.bytes_fetched / page_bytes as u64)
    };
    // With room for two pages. LRU: a A b c(drops a) a(drops b) A b(drops c). LFU: a A b c(drops b) A A b(drops c).
    assert_eq!(run(Policy::Lru, 2, 1), (2, 5, 5, 5));
    assert_eq!(run(Policy::Lfu, 2, 1), (3, 4, 4, 4));
    // With room for all each comes once.
    assert_eq!(run(Policy::Lru, 3, 1), (4, 3, 3, 3));
    assert_eq!(run(Policy::Lfu, 3, 1), (4, 3, 3, 3));
    // Five tokens at a time: a, b, c are neighbours and come together; then a and b are there.
    let (memory, fetched, ..) = run(Policy::Lru, 300, 5);
    assert_eq!((memory, fetched), (2, 3));
}

#[test]
fn distinct_records_are_counted() {
    let (_dir, bundle) = random(&tiny());
    let layout = bundle.tables().unwrap().unwrap().layout().clone();
    let text: Vec<u32> = (0..250).map(|i| i % 120).collect();
    let found = TextRecords::of(&layout, &[text, vec![7, 7, 299, 7]]);
    assert_eq!((found.documents, found.tokens, found.records), (2, 254, 121));
    let growth = [(100, 100), (200, 120), (254, 121)].map(|(tokens, records)| Growth { tokens, records });
    assert_eq!(found.growth, growth);
    assert!((found.a_document.records - 61.0).abs() < 1e-9 && (found.a_document.tokens - 127.0).abs() < 1e-9);
    assert!((found.table_share - 121.0 / 300.0).abs() < 1e-9);
    let bytes = layout.table().record_bytes() as f64;
    assert!((found.bytes_per_token - 121.0 * bytes / 254.0).abs() < 1e-9);
}

#[test]
fn spreads_are_of_all_runs() {
    assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
    assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    assert_eq!(Spread::of([]), None);
}

#[test]
fn a_link_changes_no_byte() {
    let (_dir, bundle) = random(&tiny());
    let files = FileTransport::new(bundle.dir());
    let table = bundle.manifest().stem_table().unwrap();
    let shard = &table.shards[0];
    let linked = Linked::new(files.clone(), Some(FAST));
    in_time(async {
        let began = tokio::time::Instant::now();
        let ranges = join_all([0..10, 5..900].map(|range| linked.range(shard, range, false))).await;
        assert!(began.elapsed().as_secs_f64() * 1e3 >= FAST.round_trip_ms);
        for (found, range) in ranges.into_iter().zip([0..10, 5..900]) {
            assert_eq!(found.unwrap(), files.range(shard, range, false).await.unwrap());
        }
        assert_eq!(linked.whole(shard, false).await.unwrap(), files.whole(shard, false).await.unwrap());
    });
}

#[test]
fn logits_are_equal_wherever_rows_come_from() {
    let config = Config { stem_layers: vec![1, 2], ..tiny() };
    let (_dir, bundle) = random(&config);
    let logits = |link: Option<Link>, times: usize| {
        let rows = bundle.rows_through(&Linked::new(FileTransport::new(bundle.dir()), link)).unwrap();
        let source = Source::Tables(Rc::new(rows));
        let mut session = Session::new(backend(&bundle), source, config.clone(), MAX_STEP_TOKENS);
        in_time(async {
            let mut last = None;
            for _ in 0..times {
                session.reset();
                let Output::Logits(logits) = session.step(&[5, 80, 5, 299], Want::Logits).await.unwrap()
                else {
                    panic!("no logits");
                };
                last = Some(logits);
            }
            last.unwrap()
        })
    };
    let expected = logits(None, 1);
    assert_eq!(expected.len(), 4 * 300);
    for (link, times) in [(None, 2), (Some(FAST), 1), (Some(FAST), 2)] {
        assert_eq!(logits(link, times), expected);
    }
}

#[test]
fn answers_are_equal_and_fetch_what_they_need() {
    let config = Config { stem_layers: vec![1, 2], eos_tokens: vec![], ..tiny() };
    let (_dir, bundle) = random(&config);
    let prompt = [5, 6, 7, 8, 9, 10, 11, 12];
    in_time(async {
        let mut bench = Bench::new(&bundle, backend(&bundle), &prompt, 20).await.unwrap();
        assert_eq!((bench.prompt_tokens(), bench.tokens().len()), (8, 20));
        let streamed = bench.streamed(2).await.unwrap();
        assert!(streamed.identical);
        let over = bench.over(FAST, 1).await.unwrap();
        assert!(over.identical);
        for arm in [&streamed.resident, &streamed.warm, &over.second] {
            assert_eq!(
                (arm.a_token.requests, arm.a_token.asked, arm.first_token.table_share),
                (0.0, 0.0, 0.0)
            );
        }
        for cold in [&streamed.cold, &over.cold] {
            let layout = bundle.tables().unwrap().unwrap().layout().clone();
            let new = |tokens: &[u32]| {
                let pages: std::collections::BTreeSet<u32> =
                    tokens.iter().map(|t| layout.locate(*t).unwrap().0).collect();
                pages.into_iter().collect::<Vec<_>>()
            };
            let spans = layout.spans(&new(&prompt));
            let bytes: u64 = spans.iter().map(|s| s.bytes.end - s.bytes.start).sum();
            assert_eq!(
                (cold.first_token.traffic.requests, cold.first_token.traffic.bytes),
                (spans.len() as u64, bytes)
            );
            // A new token asks for its one page at most.
            assert!(cold.a_token.requests_max <= 1 && cold.a_token.asked <= 1.0);
        }
        assert_eq!(over.cold.a_token.steps, 19);
        // Whoever asks waits, except for what the first layers took meanwhile.
        assert!(over.cold.first_token_ms.min >= FAST.round_trip_ms * 0.5);
        assert!(Bench::new(&bundle, backend(&bundle), &prompt, 1).await.is_err());
        assert!(bench.streamed(0).await.is_err());
    });
    let other = Config { stem_layers: vec![], ..tiny() };
    let (_dir, bundle) = random(&other);
    let error = block_on(Bench::new(&bundle, backend(&bundle), &prompt, 5)).unwrap_err().to_string();
    assert!(error.contains("without tables"), "{error}");
}

#[test]
fn resident_rows_are_of_one_text() {
    let config = Config { eos_tokens: vec![], ..tiny() };
    let (_dir, bundle) = random(&config);
    let bench = block_on(Bench::new(&bundle, backend(&bundle), &[5, 6, 7], 4)).unwrap();
    let resident = bench.resident();
    let (mut copied, mut looked_up) = (Vec::new(), Vec::new());
    block_on(resident.gather_at(&[5, 6], &[7], &mut copied)).unwrap();
    block_on(bundle.rows().unwrap().gather(&[7], &mut looked_up)).unwrap();
    assert_eq!(copied, looked_up);
    assert!(block_on(resident.gather_at(&[5, 6], &[8], &mut copied)).is_err());
    assert!(block_on(resident.gather_at(&[5; 100], &[7], &mut copied)).is_err());
}
