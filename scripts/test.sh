# shellcheck shell=bash
# Every check, in the order in which a mistake shows soonest.

test_tools() {
  if have rustup; then rustup component add clippy rustfmt; fi
  cargo clippy --version && cargo fmt --version
}

software_gpu() {
  [ "$(uname)" = Linux ] || return 0
  if [ -z "${VK_ICD_FILENAMES:-}${VK_DRIVER_FILES:-}" ]; then
    lavapipe >/dev/null || apt_install "tests of the shaders" mesa-vulkan-drivers libvulkan1 ||
      die "The tests of the shaders need a software Vulkan adapter: install Mesa's lavapipe and the Vulkan loader."
    VK_ICD_FILENAMES=$(lavapipe)
    export VK_ICD_FILENAMES
  fi
  export WGPU_BACKEND=vulkan
}

# The description of Mesa's software adapter.
lavapipe() { ls /usr/share/vulkan/icd.d/lvp_icd*.json; }

# Sets CHROMIUM, the browser that the tests drive.
find_browser() {
  local candidate
  for candidate in "${CHROMIUM:-}" chromium chromium-browser google-chrome-stable google-chrome \
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" \
    "/Applications/Chromium.app/Contents/MacOS/Chromium"; do
    if [ -n "$candidate" ] && CHROMIUM=$(type -P "$candidate"); then
      export CHROMIUM
      return
    fi
  done
  apt_install "the browser tests" chromium || true
  CHROMIUM=$(type -P chromium) ||
    die "The browser tests need Chromium or Chrome: install it, or name it with CHROMIUM=/path/to/it."
  export CHROMIUM
}

# A static host of the kind that the page is put on.
static_host() {
  [ "$(uname)" = Linux ] || return 0
  PATH=$PATH:/usr/sbin
  have nginx || apt_install "the test of hosting" nginx-light ||
    die "The test of hosting needs nginx: install it, or name it with NGINX=/path/to/it."
  NGINX=${NGINX:-$(type -P nginx)}
  export NGINX
}

format() { cargo fmt --check; }

# With the trainer; the command that is built is the one without it.
lint() { cargo clippy --release --locked --all-targets --features heal -- -D warnings; }

lint_wasm() {
  if [ -n "$WASM_PATH" ] && ! [ -x /usr/bin/cargo-clippy ]; then
    apt_install "lints of the browser's engine" rust-web-clippy
  fi
  wasm cargo clippy --profile web --locked --target "$WASM" --target-dir "$WEB_TARGET" \
    --no-default-features --lib -- -D warnings
}

unit_tests() { cargo test --release --locked --features heal; }

# What a first visit fetches before the model; hosts send it compressed or not.
engine_size() {
  local plain packed
  plain=$(($(wc -c <pkg/xylem_bg.wasm)))
  packed=$(($(gzip -9 -c pkg/xylem_bg.wasm | wc -c)))
  echo "pkg/xylem_bg.wasm: $plain bytes, $packed with gzip"
  if [ "$plain" -gt 2500000 ] || [ "$packed" -gt 900000 ]; then
    die "The page's engine has grown past 2.5 MB, or 0.9 MB with gzip."
  fi
}

page_check() { npm run --silent --prefix www check; }

# The engine for several threads may be missing only where it could not be built.
browser_tests() { THREADS=$THREADS XYLEM=$XYLEM npm run --silent --prefix www test:browser; }
