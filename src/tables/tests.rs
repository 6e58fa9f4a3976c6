//! Lookups against a host in memory that can be told to misbehave, and against a folder.

use std::collections::HashMap;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use futures::future::{join, join3};
use pollster::block_on;

use super::layout::Layout;
use super::{MemoryRows, RowSource, Stats, Store, Tables, Tier, Transport, open_dir};
use crate::bundle::manifest::{Core, Source};
use crate::bundle::quant::{Dtype, dequantize_row, quantize_row, row_bytes};
use crate::bundle::random;
use crate::bundle::writer::{TableSpec, Writer};
use crate::bundle::{FileRef, Manifest, Table, TableKind};
use crate::config::Config;
use crate::config::tests::tiny;
use crate::error::{Error, Result};

const WIDTH: usize = 160;
const RECORDS: usize = 300;

/// A host in memory. Every answer takes some turns of the executor, so that lookups overlap.
#[derive(Debug, Default)]
struct Host {
    files: HashMap<String, Vec<u8>>,
    ranges: bool,
    // Answers to ranges that come with a flipped bit before the right ones follow.
    flips: Mutex<usize>,
    // The file whose ranges are wrong always.
    spoilt: Option<&'static str>,
    // Whether asking for a range fails as if nobody were there.
    breaks: bool,
    log: Mutex<Vec<Request>>,
}

/// File, range, fresh.
type Request = (String, Option<Range<u64>>, bool);

impl Host {
    fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    async fn answer(&self, file: &FileRef, range: Option<Range<u64>>, fresh: bool) -> Vec<u8> {
        self.log.lock().unwrap().push((file.file.clone(), range.clone(), fresh));
        let mut turns = 8;
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            turns -= 1;
            if turns < 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let whole = &self.files[&file.file];
        range.map_or_else(|| whole.clone(), |r| whole[r.start as usize..r.end as usize].to_vec())
    }
}

impl Transport for &Host {
    async fn range(&self, file: &FileRef, range: Range<u64>, fresh: bool) -> Result<Option<Vec<u8>>> {
        if self.breaks {
            return Err(Error::Network { url: file.file.clone(), reason: "a broken range".into() });
        }
        let mut bytes = self.answer(file, Some(range), fresh).await;
        if self.spoilt == Some(&file.file) {
            bytes[7] ^= 1;
        }
        let mut flips = self.flips.lock().unwrap();
        if *flips > 0 {
            *flips -= 1;
            bytes[7] ^= 1;
        }
        Ok(self.ranges.then_some(bytes))
    }

    async fn whole(&self, file: &FileRef, fresh: bool) -> Result<Vec<u8>> {
        Ok(self.answer(file, None, fresh).await)
    }
}

#[derive(Debug, Default)]
struct Shelf(Mutex<HashMap<u32, Vec<u8>>>);

impl Store for &Shelf {
    async fn load(&self, pages: &[u32]) -> Vec<(u32, Vec<u8>)> {
        let shelf = self.0.lock().unwrap();
        pages.iter().filter_map(|p| Some((*p, shelf.get(p)?.clone()))).collect()
    }

    fn save(&self, page: u32, bytes: &[u8]) {
        self.0.lock().unwrap().insert(page, bytes.to_vec());
    }

    fn forget(&self, page: u32) {
        self.0.lock().unwrap().remove(&page);
    }
}

/// Slots in another order than records; 7 shares no factor with the number of records of any table here.
fn slot(record: u32, records: usize) -> u32 {
    (record * 7 + 3) % records as u32
}

fn stored(record: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let row: Vec<f32> =
        (0..2 * WIDTH).map(|i| ((record as usize * 31 + i * 17) % 251) as f32 - 120.0).collect();
    row.chunks(WIDTH).for_each(|r| quantize_row(r, &mut bytes));
    bytes
}

/// What a lookup gives.
fn rows(tokens: &[u32]) -> Vec<f32> {
    let mut out = vec![0.0; tokens.len() * 2 * WIDTH];
    for (record, token) in out.chunks_mut(2 * WIDTH).zip(tokens) {
        for (row, bytes) in record.chunks_mut(WIDTH).zip(stored(*token).chunks(row_bytes(WIDTH))) {
            dequantize_row(bytes, row);
        }
    }
    out
}

/// 300 records of two rows, 3 a page, 60 a shard: 100 pages of 1,008 bytes in 5 shards.
fn host() -> (Table, Host) {
    let (records, per_page, per_shard) = (RECORDS, 3, 60);
    let mut slots = vec![Vec::new(); records];
    let mut index = Vec::new();
    for record in 0..records as u32 {
        slots[slot(record, records) as usize] = stored(record);
        index.extend(slot(record, records).to_le_bytes());
    }
    for page in slots.chunks(per_page) {
        index.extend(&blake3::hash(&page.concat()).as_bytes()[..16]);
    }
    let mut host = Host { ranges: true, ..Host::default() };
    let mut shards = Vec::new();
    for (i, shard) in slots.chunks(per_shard).enumerate() {
        shards.push(FileRef::of(format!("stem-{i}.bin"), &shard.concat()));
        host.files.insert(format!("stem-{i}.bin"), shard.concat());
    }
    let table = Table {
        name: "stem".into(),
        kind: TableKind::Stem,
        records,
        rows_per_record: 2,
        width: WIDTH,
        records_per_page: per_page,
        records_per_shard: per_shard,
        shards,
        index: FileRef::of("index.bin", &index),
    };
    host.files.insert("index.bin".into(), index);
    (table, host)
}

fn tables<S: Store>((table, host): &(Table, Host), store: S, budget: usize) -> Tables<&Host, S> {
    Tables::new(table, &host.files["index.bin"], host, store, budget).unwrap()
}

fn gather(tables: &impl RowSource, tokens: &[u32]) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    block_on(tables.gather(tokens, &mut out)).map(|()| out)
}

/// The record in slot `slot`.
fn at(slot_wanted: u32) -> u32 {
    (0..RECORDS as u32).find(|r| slot(*r, RECORDS) == slot_wanted).unwrap()
}

#[test]
fn rows_come_in_order_and_are_fetched_once() {
    let host = host();
    let tables = tables(&host, (), 1 << 20);
    let tokens = [at(59), at(60), at(0), at(59), at(299)];
    let mut out = vec![5.0];
    block_on(tables.gather(&tokens, &mut out)).unwrap();
    assert_eq!((out[0], &out[1..]), (5.0, &rows(&tokens)[..]));
    assert_eq!(host.1.requests(), 3, "one a shard: {:?}", host.1.log);
    assert_eq!(gather(&tables, &tokens).unwrap(), rows(&tokens));
    let stats = tables.stats();
    assert!(stats.stall_ms > 0.0);
    let expected = Stats {
        rows: 10,
        unique_rows: 8,
        hot: 4,
        fetched: 4,
        requests: 3,
        bytes_fetched: 22 * 1008,
        hot_bytes: 22 * 1008,
        ..Stats::default()
    };
    assert_eq!(Stats { stall_ms: 0.0, ..stats }, expected);
}

#[test]
fn a_lookup_says_where_each_row_was() {
    let (host, shelf) = (host(), Shelf::default());
    gather(&tables(&host, &shelf, 1 << 20), &[at(30)]).unwrap();
    let tables = tables(&host, &shelf, 1 << 20);
    gather(&tables, &[at(0)]).unwrap();
    let (mut out, mut origins) = (Vec::new(), Vec::new());
    // One page in memory, one in the store, one nowhere yet, and a row twice.
    let tokens = [at(1), at(31), at(299), at(1)];
    block_on(tables.gather_traced(&[], &tokens, &mut out, &mut origins)).unwrap();
    assert_eq!(out, rows(&tokens));
    let tiers: Vec<Tier> = origins.iter().filter_map(|o| o.tier).collect();
    assert_eq!(tiers, [Tier::Memory, Tier::Stored, Tier::Fetched, Tier::Memory]);
    assert!(origins[0].ms == 0.0 && origins[1].ms > 0.0 && origins[2].ms >= origins[1].ms);
    assert!(block_on(tables.gather_traced(&[], &[300], &mut out, &mut origins)).is_err());
    assert_eq!(origins.len(), 4);
}

#[test]
fn a_visit_sees_each_record_once() {
    let (host, shelf) = (host(), Shelf::default());
    let tables = tables(&host, &shelf, 1 << 20);
    gather(&tables, &[at(30)]).unwrap();
    let mut seen = Vec::new();
    tables.visit_memory(|record, bytes| seen.push((record, bytes.to_vec())));
    seen.sort_unstable();
    let mut page: Vec<u32> = (30..33).map(at).collect();
    page.sort_unstable();
    assert_eq!(seen.iter().map(|(r, _)| *r).collect::<Vec<_>>(), page);
    assert!(seen.iter().all(|(record, bytes)| *bytes == stored(*record)));
    let mut all = Vec::new();
    block_on(tables.visit_all(|record, bytes| {
        assert_eq!(bytes, stored(record));
        all.push(record);
    }))
    .unwrap();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..RECORDS as u32));

    let layout = tables.layout();
    for record in [at(0), at(61), at(299)] {
        let address = layout.address(record).unwrap();
        let shard = &host.1.files[&address.file];
        assert_eq!(shard[address.offset as usize..][..address.bytes], stored(record));
        assert!(layout.records(address.page).contains(&record));
    }
    assert!(layout.address(300).is_err());
}

#[test]
fn a_download_fills_the_store_whatever_the_host_serves() {
    let all: Vec<u32> = (0..100).collect();
    // How the host misbehaves, and the requests that it takes: a range in each of five shards, one of them twice, or whole
    // shards.
    for (ranges, flips, requests) in [(true, 0, 5), (true, 1, 6), (false, 0, 6)] {
        let mut host = host();
        host.1.ranges = ranges;
        let shelf = Shelf::default();
        // Room for ten pages, one of them in use.
        let tables = tables(&host, &shelf, 10 * 1008);
        gather(&tables, &[at(299)]).unwrap();
        *host.1.flips.lock().unwrap() = flips;
        let before = host.1.requests();
        block_on(tables.download(&all)).unwrap();
        assert_eq!(shelf.0.lock().unwrap().len(), 100);
        let (index, stored) = (&host.1.files["index.bin"], shelf.0.lock().unwrap().clone());
        let layout = Layout::new(&host.0, index).unwrap();
        assert!(stored.iter().all(|(page, bytes)| layout.is_page(*page, bytes)));
        assert_eq!(tables.stats().hot_bytes, 10 * 1008);
        let asked = host.1.requests() - before;
        assert!(asked <= requests, "{asked} for {ranges}, {flips}");
        // One bad answer is no reason to give ranges up.
        let whole = host.1.log.lock().unwrap().iter().filter(|(_, range, _)| range.is_none()).count();
        assert_eq!(whole > 0, !ranges, "{whole} whole shards for {ranges}, {flips}");
        // Neither the page in use nor a stored one needs the host.
        let before = host.1.requests();
        assert_eq!(gather(&tables, &[at(299), at(100)]).unwrap(), rows(&[at(299), at(100)]));
        assert_eq!(host.1.requests(), before);
    }
}

#[test]
fn a_download_and_a_lookup_share_requests() {
    let host = host();
    let shelf = Shelf::default();
    let tables = tables(&host, &shelf, 1 << 20);
    let mut out = Vec::new();
    let all: Vec<u32> = (0..20).collect();
    let (first, second, third) =
        block_on(join3(tables.download(&all), tables.gather(&[at(30)], &mut out), tables.download(&all)));
    first.and(second).and(third).unwrap();
    assert_eq!((out, host.1.requests()), (rows(&[at(30)]), 1));
    assert_eq!(shelf.0.lock().unwrap().len(), 20);

    // A lookup that is under way and dropped leaves its page to the next download.
    let (mut out, token) = (Vec::new(), [at(90)]);
    let mut lookup = Box::pin(tables.gather(&token, &mut out));
    assert!(lookup.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let mut download = Box::pin(tables.download(&[30]));
    assert!(download.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(lookup);
    block_on(download).unwrap();
    assert!(!shelf.0.lock().unwrap().contains_key(&30));
    block_on(tables.download(&[30])).unwrap();
    assert!(shelf.0.lock().unwrap().contains_key(&30));
}

#[test]
fn an_unknown_token_is_refused() {
    let host = host();
    let tables = tables(&host, (), 1 << 20);
    let mut out = vec![5.0];
    let error = block_on(tables.gather(&[1, 300], &mut out)).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!((out, host.1.requests()), (vec![5.0], 0));
}

#[test]
fn lookups_side_by_side_share_requests() {
    let host = host();
    let tables = tables(&host, (), 1 << 20);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let lookups =
        join3(tables.warm(&[1, 2, 3, 4]), tables.gather(&[3, 4], &mut a), tables.gather(&[5], &mut b));
    let (warmed, first, second) = block_on(lookups);
    warmed.and(first).and(second).unwrap();
    assert_eq!((a, b), (rows(&[3, 4]), rows(&[5])));
    assert_eq!(slot(5, RECORDS) / 3, 12);
    assert_eq!(host.1.requests(), 2, "one for 1 to 4, one for 5: {:?}", host.1.log);
    assert_eq!(tables.stats().fetched, 3);
}

#[test]
fn a_dropped_fetch_is_taken_over() {
    let host = host();
    let tables = tables(&host, (), 1 << 20);
    let mut out = Vec::new();
    let mut first = Box::pin(tables.warm(&[1]));
    let mut second = Box::pin(tables.gather(&[1], &mut out));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut cx).is_pending());
    assert!(second.as_mut().poll(&mut cx).is_pending());
    assert_eq!(host.1.requests(), 1);
    drop(first);
    block_on(second).unwrap();
    assert_eq!((out, host.1.requests()), (rows(&[1]), 2));
}

#[test]
fn the_budget_is_kept() {
    let host = host();
    let tables = tables(&host, (), 2100);
    let all: Vec<u32> = (0..RECORDS as u32).collect();
    assert_eq!(gather(&tables, &all).unwrap(), rows(&all));
    assert_eq!(tables.stats().hot_bytes, 2016);
    let before = host.1.requests();
    assert_eq!(
        gather(&tables, &[at(0), at(1), at(3), at(150)]).unwrap(),
        rows(&[at(0), at(1), at(3), at(150)])
    );
    assert!(host.1.requests() > before);
    tables.set_budget(0);
    assert_eq!(gather(&tables, &[7, 8]).unwrap(), rows(&[7, 8]));
    assert_eq!(tables.stats().hot_bytes, 0);
}

#[test]
fn a_host_without_ranges_gives_whole_shards() {
    let mut host = host();
    host.1.ranges = false;
    let tables = tables(&host, (), 1 << 20);
    let tokens = [at(0), at(59), at(61)];
    let (first, second) = {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let done = block_on(join(tables.gather(&tokens, &mut a), tables.gather(&[at(40)], &mut b)));
        done.0.and(done.1).unwrap();
        (a, b)
    };
    assert_eq!((first, second), (rows(&tokens), rows(&[at(40)])));
    assert_eq!(gather(&tables, &[at(30)]).unwrap(), rows(&[at(30)]));
    let log = host.1.log.lock().unwrap();
    assert_eq!(log.iter().filter(|(_, range, _)| range.is_some()).count(), 1, "one probe: {log:?}");
    assert_eq!(log.len(), 3, "and two shards: {log:?}");
}

#[test]
fn a_flipped_bit_is_fetched_again_and_lasting_ones_avoided() {
    let mut host = host();
    *host.1.flips.get_mut().unwrap() = 1;
    let tables = tables(&host, (), 1 << 20);
    let tokens = [at(0), at(1)];
    assert_eq!(gather(&tables, &tokens).unwrap(), rows(&tokens));
    let fresh = |h: &Host| h.log.lock().unwrap().iter().map(|r| (r.1.is_some(), r.2)).collect::<Vec<_>>();
    assert_eq!(fresh(&host.1), [(true, false), (true, true)]);
    assert_eq!(tables.stats().damaged_pages, 1);
    *host.1.flips.lock().unwrap() = 100;
    assert_eq!(gather(&tables, &[at(3)]).unwrap(), rows(&[at(3)]));
    assert_eq!(gather(&tables, &[at(60)]).unwrap(), rows(&[at(60)]));
    assert_eq!(gather(&tables, &[at(120)]).unwrap(), rows(&[at(120)]));
    // The first shard alone is avoided, from the second one on the host.
    let avoided = [(true, false), (true, true), (false, false)];
    assert_eq!(fresh(&host.1)[2..], [&avoided[..], &avoided, &[(false, false)]].concat());
}

#[test]
fn one_bad_shard_does_not_end_ranges_of_the_others() {
    let mut host = host();
    host.1.spoilt = Some("stem-1.bin");
    let tables = tables(&host, (), 1 << 20);
    for slots in [[0, 1], [60, 61], [120, 121], [65, 180]] {
        let tokens = slots.map(at);
        assert_eq!(gather(&tables, &tokens).unwrap(), rows(&tokens));
    }
    let log = host.1.log.lock().unwrap();
    let whole: Vec<_> = log.iter().filter(|(_, range, _)| range.is_none()).map(|(file, ..)| file).collect();
    assert_eq!(whole, ["stem-1.bin"]);
}

#[test]
fn a_host_whose_ranges_fail_gives_whole_shards() {
    let mut host = host();
    host.1.breaks = true;
    let tables = tables(&host, (), 1 << 20);
    let tokens = [at(0), at(130)];
    assert_eq!(gather(&tables, &tokens).unwrap(), rows(&tokens));
    assert_eq!(host.1.requests(), 2);
    // Not asked for again.
    assert_eq!(gather(&tables, &[at(299)]).unwrap(), rows(&[at(299)]));
    assert!(host.1.log.lock().unwrap().iter().all(|(_, range, _)| range.is_none()));
}

#[test]
fn a_damaged_shard_is_never_used() {
    let mut host = host();
    host.1.files.get_mut("stem-0.bin").unwrap()[5] ^= 64;
    let store = Shelf::default();
    let tables = tables(&host, &store, 1 << 20);
    let error = gather(&tables, &[at(60), at(2)]).unwrap_err();
    assert!(matches!(&error, Error::Bundle { file, .. } if file == "stem-0.bin"), "{error}");
    assert!(!store.0.lock().unwrap().contains_key(&0));
    assert_eq!(gather(&tables, &[at(3), at(60)]).unwrap(), rows(&[at(3), at(60)]));
    assert!(gather(&tables, &[at(0)]).is_err());
}

#[test]
fn stored_pages_need_no_network_unless_damaged() {
    let host = host();
    let store = Shelf::default();
    let tokens = [at(0), at(3), at(70)];
    gather(&tables(&host, &store, 0), &tokens).unwrap();
    assert_eq!(host.1.requests(), 2);
    let second = tables(&host, &store, 1 << 20);
    assert_eq!(gather(&second, &tokens).unwrap(), rows(&tokens));
    assert_eq!((host.1.requests(), second.stats().stored), (2, 3));
    store.0.lock().unwrap().get_mut(&1).unwrap()[9] ^= 1;
    let third = tables(&host, &store, 1 << 20);
    assert_eq!(gather(&third, &tokens).unwrap(), rows(&tokens));
    assert_eq!((host.1.requests(), third.stats().stored, third.stats().fetched), (3, 2, 1));
    assert_eq!(store.0.lock().unwrap()[&1], host.1.files["stem-0.bin"][1008..2016]);
}

#[test]
fn a_wrong_index_is_refused() {
    let (table, mut host) = host();
    let index = host.files.get_mut("index.bin").unwrap();
    index[0] ^= 1;
    let open = |table: &Table, index: &[u8]| Layout::new(table, index).unwrap_err().to_string();
    assert!(open(&table, index).contains("hash"));
    assert!(open(&table, &index[4..]).contains("bytes"));
    // The index of a careless converter: its hash is right, but two records share a slot.
    let twice = Table { index: FileRef::of("index.bin", index), ..table.clone() };
    assert!(open(&twice, index).contains("slot 2, which is taken"));
    index[3] = 200;
    let outside = Table { index: FileRef::of("index.bin", index), ..table };
    assert!(open(&outside, index).contains("outside"));
}

#[test]
fn spans_join_over_small_gaps_only() {
    let (records, width) = (200, 16384);
    let record_bytes = row_bytes(width) as u64; // 16,896
    let index: Vec<u8> = (0..records as u32).flat_map(u32::to_le_bytes).chain([0; 16 * 200]).collect();
    let shard = |i| FileRef { file: format!("{i}"), bytes: 100 * record_bytes, blake3: String::new() };
    let table = Table {
        name: "stem".into(),
        kind: TableKind::Stem,
        records,
        rows_per_record: 1,
        width,
        records_per_page: 1,
        records_per_shard: 100,
        shards: vec![shard(0), shard(1)],
        index: FileRef::of("index", &index),
    };
    let layout = Layout::new(&table, &index).unwrap();
    let spans = |pages: &[u32]| layout.spans(pages).into_iter().map(|s| s.pages).collect::<Vec<_>>();
    assert_eq!(spans(&[0, 1, 3, 5, 7, 10, 99, 100]), [0..8, 10..11, 99..100, 100..101]);
    let all: Vec<u32> = (0..200).collect();
    let split = layout.spans(&all);
    assert!(split.iter().all(|s| s.bytes.end - s.bytes.start <= 1 << 20));
    assert_eq!(split.iter().map(|s| s.bytes.end - s.bytes.start).sum::<u64>(), 200 * record_bytes);
    assert_eq!(layout.spans(&[101])[0].bytes, record_bytes..2 * record_bytes);
}

/// A bundle of random weights in `dir`.
pub(crate) fn bundle(dir: &std::path::Path, config: &Config) -> Manifest {
    let writer = Writer::create(dir).unwrap();
    let core = random::core(config, 1, |_| Dtype::Q8).into_iter();
    let core = core.map(|(t, planes)| Ok((t.name, t.dtype, t.shape, planes)));
    let core: Core = writer.core(core).unwrap();
    let order: Vec<u32> = (0..config.vocab_size as u32).rev().collect();
    let spec = TableSpec::stem(config, &order);
    let tables = if config.stem_layers.is_empty() {
        Vec::new()
    } else {
        let fill = |record: u32, out: &mut Vec<u8>| {
            let rows = random::rows(config, record, 1);
            rows.chunks(config.intermediate_size).for_each(|r| quantize_row(r, out));
            Ok(())
        };
        vec![writer.table(&spec, fill).unwrap()]
    };
    let source = Source { base: "random".into(), licence: "none".into(), rows: "random".into() };
    let tokenizer = writer.file("tokenizer.json", b"{}").unwrap();
    let manifest = Manifest::new("tiny".into(), source, config.clone(), core, tables, tokenizer, None);
    writer.finish(&manifest).unwrap();
    manifest
}

#[test]
fn a_folder_gives_the_rows_that_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle");
    let config = Config { stem_layers: vec![1, 2], ..tiny() };
    let manifest = bundle(&path, &config);
    let tables = open_dir(&path, manifest.stem_table()).unwrap();
    let all = (0..300).flat_map(|t| random::rows(&config, t, 1)).collect();
    let memory = MemoryRows { rows: all, row_width: config.row_width() };
    let tokens = [299, 0, 17, 17, 4];
    let (found, expected) = (gather(&tables, &tokens).unwrap(), gather(&memory, &tokens).unwrap());
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(&expected) {
        assert!((f - e).abs() <= 1.0 / 127.0, "{f} for {e}");
    }

    let shard = path.join("stem-000.bin");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 10]).unwrap();
    let cut = open_dir(&path, manifest.stem_table()).unwrap();
    assert_eq!(gather(&cut, &[299]).unwrap(), found[..config.row_width()]);
    let error = gather(&cut, &[0]).unwrap_err().to_string();
    assert!(error.contains("stem-000.bin") && error.contains("ends before"), "{error}");
    std::fs::remove_file(path.join("stem-index.bin")).unwrap();
    assert!(matches!(open_dir(&path, manifest.stem_table()), Err(Error::Io { .. })));
}

#[test]
fn a_model_without_tables_gathers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle");
    let manifest = bundle(&path, &Config { stem_layers: vec![], ..tiny() });
    let tables = open_dir(&path, manifest.stem_table()).unwrap();
    assert!(tables.is_none());
    tables.prefetch(&[1]);
    assert!(gather(&tables, &[1, 2]).unwrap().is_empty());
}
