# shellcheck shell=bash
# Shared by the scripts: messages, timed steps, stamps, system packages. Works with the bash 3.2 of macOS.
# shellcheck disable=SC2034 # the other scripts read the variables

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/xylem
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
WEB_TARGET=$TARGET/web

bold=
plain=
if [ -t 1 ]; then
  bold=$(printf '\033[1m')
  plain=$(printf '\033[0m')
fi

heading() { printf '%s%s%s\n' "$bold" "$1" "$plain"; }

have() { command -v "$1" >/dev/null 2>&1; }

# die REASON HINT…: ends with a message.
die() {
  local line
  heading "x: $1" >&2
  shift
  for line in "$@"; do printf '   %s\n' "$line" >&2; done
  STEP=
  exit 1
}

STEP=
TIMES=
APT_UPDATED=

# step NAME COMMAND…: runs COMMAND under a heading and notes how long it took.
step() {
  local begin=$SECONDS
  STEP=$1
  shift
  heading "== $STEP"
  "$@"
  TIMES="$TIMES$(printf '%6d s  %s' $((SECONDS - begin)) "$STEP")
"
  STEP=
}

# Called on exit with the status: says which step failed.
report() {
  if [ "$1" -ne 0 ] && [ -n "$STEP" ]; then
    heading "x: \"$STEP\" failed; the reason stands above. The next run goes on from here." >&2
  fi
}

sha256() {
  if have sha256sum; then sha256sum "$@"; else shasum -a 256 "$@"; fi | cut -d' ' -f1
}

# stamped FILE VALUE: whether the work that FILE stands for was finished with the inputs VALUE.
stamped() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_install PURPOSE PACKAGE…: installs Debian packages, or says which are wanted where that is impossible.
apt_install() {
  local purpose=$1
  shift
  have apt-get || return 1
  if [ "$(id -u)" -ne 0 ] && ! have sudo; then
    die "$purpose needs packages that only root may install. As root, run:" "apt-get install --no-install-recommends $*"
  fi
  echo "Installing for $purpose: $*"
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@")
  # Old package lists offer old versions, so they are renewed once a run.
  if [ -z "$APT_UPDATED" ]; then as_root apt-get update -q || true; fi
  APT_UPDATED=yes
  as_root "${install[@]}"
}
