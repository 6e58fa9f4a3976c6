#!/usr/bin/env bash
# Measures the default model anew: writes the figures that docs and page show, and the tables of the docs from them.
#
#     tools/measure/run.sh BUNDLE BASE.gguf EDITS.jsonl FACTBOOK.txt CHATS.txt [WHAT...]
#
# WHAT: edits reach frequency rows needle (all unless given). `tools/measure/layers.sh` compares sets of layers.
# EDIT_ROWS, REACH_FACTS, TAUGHT_FACTS: so many rows and facts, from the first on (60, 60, 27).
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
bundle=$1 base=$2 edits=$3 factbook=$4 chats=$5
shift 5
root=$(cd "$(dirname "$0")/../.." && pwd)
xylem=${XYLEM:-$root/target/release/xylem}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the base knows is asked of a bundle of it, which is several times faster than single precision.
dense=$work/dense
dense() { [ -d "$dense" ] || "$xylem" convert --base "$base" --out "$dense" --layers none >&2; }

evaluate() { "$xylem" eval --bundle "$bundle" --json "$@"; }
# A file of figures is replaced only by a whole one.
keep() { mv "$work/new.json" "$root/$1"; }

[ $# -gt 0 ] || set -- edits reach frequency rows needle
for one in "$@"; do
  echo "$one" >&2
  case $one in
    edits)
      dense
      evaluate --suite edits --base "$dense" --data "$edits" --limit "${EDIT_ROWS:-60}" >"$work/new.json"
      keep www/src/edits/figures.json
      ;;
    reach)
      dense
      evaluate --suite reach --base "$dense" --limit "${REACH_FACTS:-60}" --by swap,teach --steps 20 --teach-limit "${TAUGHT_FACTS:-27}" >"$work/new.json"
      keep www/src/edits/reach.json
      ;;
    frequency)
      by_frequency() { evaluate --suite nll --base "$base" --by-frequency --data "$1" --limit "$2"; }
      by_frequency "$factbook" 21 >"$work/factbook.json"
      by_frequency "$chats" 16 >"$work/chats.json"
      printf '{"factbook": %s, "chats": %s}\n' "$(cat "$work/factbook.json")" "$(cat "$work/chats.json")" >"$work/new.json"
      keep docs/figures/frequency.json
      ;;
    rows)
      evaluate --suite rows --base "$base" --data "$factbook" >"$work/new.json"
      keep docs/figures/rows.json
      ;;
    needle)
      node "$root/tools/measure/needle.mjs" --text "$factbook" --out "$work/needle.jsonl"
      dense
      evaluate --suite needle --base "$dense" --data "$work/needle.jsonl" >"$work/new.json"
      keep docs/figures/needle.json
      ;;
    *) echo "unknown: $one" >&2 && exit 2 ;;
  esac
done
node "$root/tools/measure/tables.mjs"
