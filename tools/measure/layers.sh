#!/usr/bin/env bash
# Compares sets of STEM layers in closed form, before any healing: converts one after the other, measures each, and deletes it.
# Sets that are in docs/figures/layers.json already are left out, so it can be stopped and started again.
#
#     tools/measure/layers.sh BASE.gguf EDITS.jsonl FACTBOOK.txt CHATS.txt [FOLDER]
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
base=$1 edits=$2 factbook=$3 chats=$4
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${5:-$(mktemp -d)}
mkdir -p "$work"
xylem=${XYLEM:-$root/target/release/xylem}
out=$root/docs/figures/layers.json
[ -s "$out" ] || echo '[]' >"$out"

# A quarter of the text that is built in, every fourth document: a set takes minutes then.
awk 'BEGIN { RS = "\n<\\|endoftext\\|>\n"; ORS = "\n<|endoftext|>\n" } NR % 4 == 1' \
  "$root/src/convert/calibration.txt" >"$work/calibration.txt"

add() {
  local name=$1 layers=$2 model=$work/model
  ! grep -qF "\"$name\"" "$out" || return 0
  echo "$name: $layers" >&2
  "$xylem" convert --base "$base" --out "$model" --layers "$layers" --calibration "$work/calibration.txt" --json >"$work/made.json"
  "$xylem" eval --json --bundle "$model" --base "$base" --suite nll --data "$factbook" --limit 8 >"$work/factbook.json"
  "$xylem" eval --json --bundle "$model" --base "$base" --suite nll --data "$chats" --limit 6 >"$work/chats.json"
  "$xylem" eval --json --bundle "$model" --suite edits --data "$edits" --limit 24 >"$work/edits.json"
  rm -rf "$model"
  node -e '
    const [out, name, work] = process.argv.slice(1);
    const fs = require("node:fs");
    const read = (file) => JSON.parse(fs.readFileSync(file, "utf8"));
    const [made, factbook, chats, edits] = ["made", "factbook", "chats", "edits"].map((one) => read(`${work}/${one}.json`));
    const one = { name, layers: made.stem_layers, factbook, chats, swap: edits.swap };
    fs.writeFileSync(out, `${JSON.stringify([...read(out), one], null, 2)}\n`);
  ' "$out" "$name" "$work"
}

add "ten early-middle layers" 3-12
add "ten from the second on" 1-10
add "every third" 2,5,8,11,14,17,20,23,26,29
add "fourteen from the first on" 1-14
add "ten later layers" 13-22
add "half of the layers" 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29
node "$root/tools/measure/tables.mjs"
