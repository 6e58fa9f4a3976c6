# shellcheck shell=bash
# What the builds need: cargo, node, python, a standard library for wasm32, wasm-bindgen, node modules.

RUST_WANTED=1.95
NODE_WANTED=20
WASM=wasm32-unknown-unknown
FALLBACK=$CACHE/debian-wasm

# at_least WANTED HAVE: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -t. -k1,1n -k2,2n | head -n 1)" = "$1" ]; }

# Names everything that is missing at once, and how to get it.
basics() {
  local missing=() version
  if ! have cargo || ! have rustc; then
    missing+=("cargo: install Rust with rustup, https://rustup.rs")
  else
    version=$(rustc --version | cut -d' ' -f2)
    at_least "$RUST_WANTED" "${version%%-*}" ||
      missing+=("rustc is $version, $RUST_WANTED or later is wanted: run \`rustup update stable\`")
  fi
  if ! have cc; then
    apt_install "the linker" gcc libc6-dev || missing+=("cc: install a C compiler (on macOS: xcode-select --install)")
  fi
  if ! have node || ! have npm; then
    missing+=("node $NODE_WANTED or later, with npm: https://nodejs.org")
  else
    version=$(node --version)
    at_least "$NODE_WANTED" "${version#v}" ||
      missing+=("node is $version, $NODE_WANTED or later is wanted: https://nodejs.org")
  fi
  if ! have python3; then
    apt_install "the base weights" python3 python3-pip || missing+=("python3, with pip: https://www.python.org")
  elif ! python3 -m pip --version >/dev/null 2>&1; then
    apt_install "the base weights" python3-pip || missing+=("pip: python3 -m ensurepip --user")
  fi
  [ ${#missing[@]} -eq 0 ] || die "Some things must be there first:" "${missing[@]}"
}

has_wasm() { [ -d "$("$1" --print sysroot)/lib/rustlib/$WASM/lib" ]; }

# Sets WASM_PATH, what goes before PATH for a wasm build: nothing, or the fallback's folder.
wasm_target() {
  WASM_PATH=
  if has_wasm rustc; then return; fi
  if ! [ -f "$FALLBACK/stamp" ]; then
    if have rustup && rustup target add "$WASM" && has_wasm rustc; then return; fi
    echo "rustup cannot give the target $WASM here; building its standard library from Debian's source instead."
  fi
  debian_wasm
  WASM_PATH=$FALLBACK/bin
}

# Sets THREADS if the standard library can be built for threads in wasm, which takes rustup's copy of its source.
wasm_threads() {
  local source
  THREADS=
  source=$(rustc --print sysroot)/lib/rustlib/src/rust/library
  if [ -z "$WASM_PATH" ]; then
    if [ -d "$source" ]; then THREADS=yes; fi
    if [ -z "$THREADS" ] && have rustup && rustup component add rust-src && [ -d "$source" ]; then THREADS=yes; fi
  fi
  if [ -z "$THREADS" ]; then
    echo "The source of Rust's standard library is not to be had from rustup (\`rustup component add rust-src\`):" \
      "the page goes without the engine for several threads."
  fi
}

# wasm COMMAND…: runs COMMAND with the toolchain that knows wasm32. Every browser with WebAssembly has simd128.
wasm() {
  local flags=-Ctarget-feature=+simd128
  if [ -n "$WASM_PATH" ]; then
    # clippy asks SYSROOT for the standard library that the compiler is told by its wrapper.
    PATH=$WASM_PATH:$PATH SYSROOT=$FALLBACK RUSTFLAGS=$flags "$@"
  else
    RUSTFLAGS=$flags "$@"
  fi
}

# Whether Debian's compiler for browser projects is there, with its source, and new enough.
debian_rust() {
  [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] && [ -d /usr/lib/rustlib/src/rust/library ] &&
    at_least "$RUST_WANTED" "$(/usr/bin/rustc --version | cut -d' ' -f2)"
}

# A toolchain folder around Debian's compiler: its own sysroot with the host's libraries by link, a standard
# library for wasm32 built here once, and the linker. cargo takes it for any other toolchain.
debian_wasm() {
  local llvm host stamp build tool
  if ! debian_rust; then
    apt_install "the wasm32 target" rustc-web cargo-web rust-web-src || true
    debian_rust ||
      die "The Rust target $WASM is missing." \
        "With rustup (https://rustup.rs): rustup target add $WASM" \
        "Or, on Debian, with rustc-web, cargo-web and rust-web-src of version $RUST_WANTED or later: ./x builds it from these."
  fi
  llvm=$(/usr/bin/rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
  host=$(/usr/bin/rustc -vV | sed -n 's/^host: //p')
  have "lld-$llvm" || apt_install "the wasm32 linker" "lld-$llvm"

  stamp=$(/usr/bin/rustc -vV)
  if ! stamped "$FALLBACK/stamp" "$stamp"; then
    build=$CACHE/std-build
    # `-Zforce-unstable-if-unmarked` is what makes these crates the standard library in the eyes of the compiler.
    (
      cd /usr/lib/rustlib/src/rust/library || exit
      unset RUSTFLAGS CARGO_TARGET_DIR CARGO_BUILD_TARGET
      RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 __CARGO_DEFAULT_LIB_METADATA=xylem-std \
        CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="-Zforce-unstable-if-unmarked -Cembed-bitcode=yes -Cdebuginfo=0" \
        /usr/bin/cargo build --locked --release --manifest-path sysroot/Cargo.toml --target "$WASM" --target-dir "$build"
    )
    rm -rf "$FALLBACK"
    mkdir -p "$FALLBACK/bin" "$FALLBACK/lib/rustlib/$WASM/lib" "$FALLBACK/lib/rustlib/$host/bin"
    cp "$build/$WASM/release/deps/"*.rlib "$FALLBACK/lib/rustlib/$WASM/lib/"
    rm -rf "$build"
    ln -s "/usr/lib/rustlib/$host/lib" "$FALLBACK/lib/rustlib/$host/lib"
    ln -s "$(command -v "lld-$llvm")" "$FALLBACK/lib/rustlib/$host/bin/rust-lld"
    ln -s /usr/bin/cargo "$FALLBACK/bin/cargo"
    # Debian's compiler finds the sysroot beside itself, so ours has to be named to it.
    for tool in rustc rustdoc; do
      printf '#!/bin/sh\nexec /usr/bin/%s --sysroot "%s" "$@"\n' "$tool" "$FALLBACK" >"$FALLBACK/bin/$tool"
      chmod +x "$FALLBACK/bin/$tool"
    done
    ln -s /usr/bin/cargo-clippy "$FALLBACK/bin/cargo-clippy"
    if have rustup; then rustup toolchain link debian-wasm "$FALLBACK"; fi
    printf '%s\n' "$stamp" >"$FALLBACK/stamp"
  fi
}
