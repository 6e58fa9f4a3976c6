#!/usr/bin/env bash
# Measures the default model anew: writes the figures that docs and page show, and the tables of the docs from them.
#
#     tools/measure/run.sh BUNDLE BASE.gguf EVAL [WHAT...]
#
# EVAL: a folder with edits.jsonl, cloze_*.jsonl, socialiqa.jsonl and quartz_science.jsonl. WHAT: loss questions knock-outs edits
# ways teach reach frequency rows needle (all unless given). `tools/measure/layers.sh` compares sets of layers.
# So many rows and facts, from the first on: EDIT_ROWS=60 WAY_ROWS=40 TEACH_ROWS=24 CLOZE_ROWS=40 CHOICE_ROWS=100 REACH_FACTS=60
# TAUGHT_FACTS=27. FACTBOOK=FILE and CHATS=FILE are texts that training never saw, those in `held/` unless given; BOOK=FILE is the
# text around the facts of `needle`, the Factbook's unless given.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,10p' "$0" >&2; exit 2; }
bundle=$1 base=$2 data=$3
shift 3
root=$(cd "$(dirname "$0")/../.." && pwd)
factbook=${FACTBOOK:-$root/tools/measure/held/factbook.txt}
chats=${CHATS:-$root/tools/measure/held/chats.txt}
xylem=${XYLEM:-$root/target/release/xylem}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the base knows is asked of a bundle of it, which is several times faster than single precision.
dense=$work/dense
dense() { [ -d "$dense" ] || "$xylem" convert --base "$base" --out "$dense" --layers none >&2; }

evaluate() { "$xylem" eval --bundle "$bundle" --json "$@"; }
# A file of figures is replaced only by a whole one.
keep() { mv "$work/new.json" "$root/$1"; }

# merged FOLDER NAME...: one object of the files NAME.json in FOLDER.
merged() {
  node -e '
    const [folder, ...names] = process.argv.slice(1);
    const read = (name) => JSON.parse(require("node:fs").readFileSync(`${folder}/${name}.json`, "utf8"));
    console.log(JSON.stringify(Object.fromEntries(names.map((name) => [name, read(name)]))));
  ' "$@"
}

# on_questions FOLDER EVAL-OPTIONS...: what comes out of all rows with questions, as files in FOLDER.
on_questions() {
  local out=$1 one
  shift
  mkdir -p "$out"
  for one in capitals continents currencies languages; do
    "$xylem" eval --json "$@" --suite cloze --data "$data/cloze_$one.jsonl" --limit "${CLOZE_ROWS:-40}" >"$out/$one.json"
  done
  for one in socialiqa quartz_science; do
    "$xylem" eval --json "$@" --suite choice --data "$data/$one.jsonl" --limit "${CHOICE_ROWS:-100}" >"$out/$one.json"
  done
  merged "$out" capitals continents currencies languages socialiqa quartz_science
}

[ $# -gt 0 ] || set -- loss questions knock-outs edits ways teach reach frequency rows needle
for one in "$@"; do
  echo "$one" >&2
  case $one in
    loss)
      evaluate --suite nll --base "$base" --data "$factbook" >"$work/factbook.json"
      evaluate --suite nll --base "$base" --data "$chats" >"$work/chats.json"
      merged "$work" factbook chats >"$work/new.json"
      keep docs/figures/loss.json
      ;;
    questions)
      dense
      on_questions "$work/of-dense" --bundle "$dense" >"$work/dense.json"
      on_questions "$work/of-model" --bundle "$bundle" >"$work/model.json"
      merged "$work" dense model >"$work/new.json"
      keep docs/figures/questions.json
      ;;
    knock-outs)
      ways=(none mean shuffle zero)
      ! grep -q '"engram"' "$bundle/manifest.json" || ways+=(engram-off)
      for way in "${ways[@]}"; do
        out=()
        [ "$way" = none ] || out=(--knock-out "$way")
        evaluate --suite nll --base "$base" --data "$factbook" --limit 8 "${out[@]}" >"$work/factbook.json"
        evaluate --suite nll --base "$base" --data "$chats" --limit 6 "${out[@]}" >"$work/chats.json"
        for one in capitals languages; do
          evaluate --suite cloze --data "$data/cloze_$one.jsonl" --limit "${CLOZE_ROWS:-40}" "${out[@]}" >"$work/$one.json"
        done
        merged "$work" factbook chats capitals languages >"$work/$way.json"
      done
      merged "$work" "${ways[@]}" >"$work/new.json"
      keep docs/figures/knock-outs.json
      ;;
    ways)
      evaluate --suite edits --data "$data/edits.jsonl" --limit "${WAY_ROWS:-40}" --alphas 0.5,0.75,1.25,1.5 \
        --methods average,copy --layer-counts 2,5 >"$work/new.json"
      keep docs/figures/ways.json
      ;;
    teach)
      evaluate --suite edits --data "$data/edits.jsonl" --limit "${TEACH_ROWS:-24}" --by swap,teach >"$work/new.json"
      keep docs/figures/teach.json
      ;;
    edits)
      dense
      evaluate --suite edits --base "$dense" --data "$data/edits.jsonl" --limit "${EDIT_ROWS:-60}" >"$work/new.json"
      keep www/src/edits/figures.json
      ;;
    reach)
      dense
      evaluate --suite reach --base "$dense" --limit "${REACH_FACTS:-60}" --by swap,teach --teach-limit "${TAUGHT_FACTS:-27}" >"$work/new.json"
      keep www/src/edits/reach.json
      ;;
    frequency)
      by_frequency() { evaluate --suite nll --base "$base" --by-frequency --data "$1" --limit "$2"; }
      by_frequency "$factbook" 21 >"$work/factbook.json"
      by_frequency "$chats" 16 >"$work/chats.json"
      merged "$work" factbook chats >"$work/new.json"
      keep docs/figures/frequency.json
      ;;
    rows)
      evaluate --suite rows --base "$base" --data "$factbook" >"$work/new.json"
      keep docs/figures/rows.json
      ;;
    needle)
      node "$root/tools/measure/needle.mjs" --text "${BOOK:-$factbook}" --out "$work/needle.jsonl"
      dense
      evaluate --suite needle --base "$dense" --data "$work/needle.jsonl" >"$work/new.json"
      keep docs/figures/needle.json
      ;;
    *) echo "unknown: $one" >&2 && exit 2 ;;
  esac
done
node "$root/tools/measure/tables.mjs"
