#!/usr/bin/env bash
# Compares sets of STEM layers: first all in closed form, then all after a short healing (layers.toml, the same tokens for each).
# Each is converted, measured and deleted. What is in docs/figures/layers.json already is left out, so it can be stopped and started
# again. Healing wants an `xylem` with the trainer (`cargo build --release --features heal`); --closed leaves it out.
#
#     tools/measure/layers.sh BASE.gguf EDITS.jsonl FACTBOOK.txt CHATS.txt TRUTHS.json|--closed [FOLDER]
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
base=$1 edits=$2 factbook=$3 chats=$4 truths=$5
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${6:-$(mktemp -d)}
mkdir -p "$work"
xylem=${XYLEM:-$root/target/release/xylem}
out=$root/docs/figures/layers.json
[ -s "$out" ] || echo '[]' >"$out"

# Of the text that is built in every fourth document for the closed form, which takes minutes then; the others to train on.
node -e '
  const [work, text] = process.argv.slice(1);
  const fs = require("node:fs");
  const between = "\n<|endoftext|>\n";
  const all = fs.readFileSync(text, "utf8").split(between);
  fs.writeFileSync(`${work}/calibration.txt`, all.filter((_, i) => i % 4 === 0).join(between));
  const lines = all.filter((_, i) => i % 4 !== 0).map((text) => `${JSON.stringify({ text })}\n`);
  fs.writeFileSync(`${work}/text.jsonl`, lines.join(""));
' "$work" "$root/src/convert/calibration.txt"

# missing NAME STATE: whether the figures lack this set in this state.
missing() {
  node -e '
    const [out, name, state] = process.argv.slice(1);
    const found = JSON.parse(require("node:fs").readFileSync(out, "utf8")).find((one) => one.name === name);
    process.exit(found?.[state] ? 1 : 0);
  ' "$out" "$1" "$2"
}

# measure NAME STATE: what $work/model, made as $work/made.json says, gives on texts and edits.
measure() {
  "$xylem" eval --json --bundle "$work/model" --base "$base" --suite nll --data "$factbook" --limit 8 >"$work/factbook.json"
  "$xylem" eval --json --bundle "$work/model" --base "$base" --suite nll --data "$chats" --limit 6 >"$work/chats.json"
  "$xylem" eval --json --bundle "$work/model" --suite edits --data "$edits" --limit 24 >"$work/edits.json"
  rm -rf "$work/model"
  node -e '
    const [out, name, state, work] = process.argv.slice(1);
    const fs = require("node:fs");
    const read = (file) => JSON.parse(fs.readFileSync(file, "utf8"));
    const [factbook, chats, made] = ["factbook", "chats", "made"].map((one) => read(`${work}/${one}.json`));
    const { es, shift, exact, kl_subject } = read(`${work}/edits.json`).swap;
    const all = read(out);
    const one = all.find((one) => one.name === name) ?? { name, layers: made.stem_layers };
    if (!all.includes(one)) all.push(one);
    one[state] = { factbook, chats, swap: { es, shift, exact, kl_subject } };
    fs.writeFileSync(out, `${JSON.stringify(all, null, 2)}\n`);
  ' "$out" "$1" "$2" "$work"
}

closed() {
  missing "$1" closed || return 0
  echo "$1: $2, in closed form" >&2
  "$xylem" convert --base "$base" --out "$work/model" --layers "$2" --calibration "$work/calibration.txt" --json >"$work/made.json"
  measure "$1" closed
}

healed() {
  missing "$1" healed || return 0
  echo "$1: $2, healed" >&2
  local list
  list=$(node -p '
    const [out, name] = process.argv.slice(1);
    JSON.stringify(JSON.parse(fs.readFileSync(out, "utf8")).find((one) => one.name === name).layers);
  ' "$out" "$1")
  sed "s/LAYERS/$list/" "$root/tools/measure/layers.toml" >"$work/layers.toml"
  rm -rf "$work/run"
  "$xylem" heal --base "$base" --settings "$work/layers.toml" --out "$work/run"
  "$xylem" convert --base "$base" --recipe "$work/run/recipe" --out "$work/model" --json >"$work/made.json"
  measure "$1" healed
}

each() {
  "$1" "ten from the second on" 1-10
  "$1" "every third" 2,5,8,11,14,17,20,23,26,29
  "$1" "ten later layers" 13-22
  "$1" "half of the layers" 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29
  "$1" "ten early-middle layers" 3-12
  "$1" "fourteen from the first on" 1-14
}

each closed
if [ "$truths" != --closed ]; then
  cp "$truths" "$work/truths.json"
  each healed
fi
node "$root/tools/measure/tables.mjs"
