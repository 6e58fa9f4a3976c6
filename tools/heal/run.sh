#!/usr/bin/env bash
# Goes on from a recipe until a given time, for a GPU that is lent until then:
#
#     tools/heal/run.sh BASE.gguf RECIPE DATA RUN END [MINUTES] [TRAIN-OPTIONS...]
#
# DATA: the fetched text that `data.py` made (README.md). END, in seconds since 1970, is when the rates reach zero; the recipe is in
# RUN/recipe some ten seconds later, and one of what was reached until then every three minutes before. MINUTES: how long the base writes
# text of its own first, while the kernels of a step are compiled; 2 unless given.
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
base=$(realpath "$1") recipe=$(realpath "$2") data=$(realpath "$3") run=$4 end=$5 minutes=${6:-2}
shift $(($# < 6 ? $# : 6))
mkdir -p "$run"
run=$(realpath "$run")
cd "$(dirname "$0")"
export PYTHONUNBUFFERED=1
name=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["name"])' "$recipe/recipe.json")
rm -f "$data"/{facts,chat,asked,passages,scraps}.jsonl "$data/done"

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
{
  python3 data.py facts chat asked passages scraps --gguf "$base" --out "$data" --minutes "$minutes" --tokens 1000000000 --completed 3000 \
    --seed "$((end % 100000))" >"$run/data.log" 2>&1
  touch "$data/done"
} &
writer=$!
python3 train.py --gguf "$base" --init "$recipe" --data "$data" --out "$run" --by "$end" --after "$data/done" --recipe "$name" \
  --provenance provenance.json --probe-minutes 2 --save-minutes 3 "$@" >"$run/train.log" 2>&1 &
trainer=$!
wait "$writer" || { echo "No text was written: $(tail -n 1 "$run/data.log")" >&2; exit 1; }
wait "$trainer" || { echo "Training broke off: $(tail -n 1 "$run/train.log")" >&2; exit 1; }
tail -n 1 "$run/log.jsonl"
