#!/usr/bin/env bash
# Compares sets of STEM layers in closed form, without healing (tools/heal/layers.py compares them healed). Each is converted,
# measured and deleted. What is in docs/figures/layers.json already is left out, so it can be stopped and started again.
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

# Of the text that is built in every fourth document, which takes minutes then.
node -e '
  const [work, text] = process.argv.slice(1);
  const fs = require("node:fs");
  const between = "\n<|endoftext|>\n";
  const all = fs.readFileSync(text, "utf8").split(between);
  fs.writeFileSync(`${work}/calibration.txt`, all.filter((_, i) => i % 4 === 0).join(between));
' "$work" "$root/src/convert/calibration.txt"

# missing NAME: whether the figures lack this set.
missing() {
  node -e '
    const [out, name] = process.argv.slice(1);
    const all = JSON.parse(require("node:fs").readFileSync(out, "utf8"));
    process.exit(all.some((one) => one.name === name) ? 1 : 0);
  ' "$out" "$1"
}

# measure NAME: what $work/model, made as $work/made.json says, gives on texts and edits.
measure() {
  "$xylem" eval --json --bundle "$work/model" --base "$base" --suite nll --data "$factbook" --limit 8 >"$work/factbook.json"
  "$xylem" eval --json --bundle "$work/model" --base "$base" --suite nll --data "$chats" --limit 6 >"$work/chats.json"
  "$xylem" eval --json --bundle "$work/model" --suite edits --data "$edits" --limit 24 >"$work/edits.json"
  rm -rf "$work/model"
  node -e '
    const [out, name, work] = process.argv.slice(1);
    const fs = require("node:fs");
    const read = (file) => JSON.parse(fs.readFileSync(file, "utf8"));
    const [factbook, chats, made] = ["factbook", "chats", "made"].map((one) => read(`${work}/${one}.json`));
    const { es, shift, exact, kl_subject } = read(`${work}/edits.json`).swap;
    const all = read(out);
    all.push({ name, layers: made.stem_layers, factbook, chats, swap: { es, shift, exact, kl_subject } });
    fs.writeFileSync(out, `${JSON.stringify(all, null, 2)}\n`);
  ' "$out" "$1" "$work"
}

closed() {
  missing "$1" || return 0
  echo "$1: $2" >&2
  "$xylem" convert --base "$base" --out "$work/model" --layers "$2" --calibration "$work/calibration.txt" --json >"$work/made.json"
  measure "$1"
}

closed "ten from the second on" 1-10
closed "every third" 2,5,8,11,14,17,20,23,26,29
closed "ten later layers" 13-22
closed "half of the layers" 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29
closed "ten early-middle layers" 3-12
closed "fourteen from the first on" 1-14
node "$root/tools/measure/tables.mjs"
