# shellcheck shell=bash
# Sourced after env.sh by scripts/release: compiles and links for arm64 macOS on Linux, without Metal and Accelerate, whose headers
# Apple's SDK alone has (scripts/check-mac builds on a Mac, with Metal).
#
# zig (through cargo-zigbuild, both from PyPI) knows libSystem. For the other libraries that are linked, stubs are made here:
# text files that name a library's place on a Mac and its symbols, taken from the declarations in the Rust crates.
# shellcheck source=scripts/old-glibc.sh
. scripts/old-glibc.sh # peer_tool, and zig's version
ZIGBUILD_VERSION=0.24.1
mac=aarch64-apple-darwin
# no file names of this machine in what goes to others
home=${CARGO_HOME:-$HOME/.cargo}
export CARGO_PROFILE_RELEASE_DEBUG=false MACOSX_DEPLOYMENT_TARGET=13.0
export CFLAGS_aarch64_apple_darwin="-ffile-prefix-map=$home/registry/src/= -ffile-prefix-map=$PWD/="
export CXXFLAGS_aarch64_apple_darwin=$CFLAGS_aarch64_apple_darwin
export RUSTFLAGS="--remap-path-prefix=$home/registry/src/= --remap-path-prefix=$PWD/= --remap-path-prefix=$PWD="

# stub FILE LIBRARY SYMBOL..: the symbols without their underscore
stub() {
  local file=$1 library=$2; shift 2
  mkdir -p "$(dirname "$file")"
  printf -- "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '%s'\n" "$library" >"$file"
  [ $# = 0 ] || { printf 'exports:\n  - targets: [ arm64-macos ]\n    symbols: [ '; printf '_%s, ' "$@" | sed 's/, $/ ]\n/'; } >>"$file"
  echo ... >>"$file"
}
# declared CRATE PATTERN: the names of C functions and objects that a crate declares and the library has
declared() {
  local crate
  crate=$(ls -d "$home"/registry/src/*/"$1"-[0-9]* | sort -V | tail -n 1)
  [ -n "$crate" ] || missing "the crate $1" "cargo fetch"
  grep -rhoE 'pub (fn|static( mut)?) +[A-Za-z_0-9]+' "$crate/src" | awk '{print $NF}' | grep -E "$2" | sort -u
}
mac_stubs() {
  local stubs=$1 framework
  local of=/System/Library/Frameworks
  for framework in Foundation Metal MetalKit Accelerate; do # llama-cpp-sys-2 names them always
    stub "$stubs/$framework.framework/$framework.tbd" $of/$framework.framework/Versions/A/$framework
  done
  # shellcheck disable=SC2046 # names, one a line
  stub "$stubs/CoreFoundation.framework/CoreFoundation.tbd" $of/CoreFoundation.framework/Versions/A/CoreFoundation $(declared core-foundation-sys '^_*k?CF')
  # shellcheck disable=SC2046
  stub "$stubs/Security.framework/Security.tbd" $of/Security.framework/Versions/A/Security $(declared security-framework-sys '^k?(Sec|SSL|CMS|CSSM|Authorization)')
  # shellcheck disable=SC2046
  stub "$stubs/libobjc.tbd" /usr/lib/libobjc.A.dylib $(declared objc2 '^_?(objc|class|sel|object|method|ivar|protocol|property|imp)_')
}

peer_tool "zig-$ZIG_VERSION" "ziglang==$ZIG_VERSION"
peer_tool "zigbuild-$ZIGBUILD_VERSION" "cargo-zigbuild==$ZIGBUILD_VERSION" --no-deps
rust_target $mac
cargo fetch --locked --target $mac >&2
mac_stubs "$MMX_CACHE/mac-stubs"
RUSTFLAGS+=" -Clink-arg=-F$MMX_CACHE/mac-stubs -Clink-arg=-L$MMX_CACHE/mac-stubs"
export GGML_METAL=OFF GGML_ACCELERATE=OFF GGML_BLAS=OFF
CARGO_ZIGBUILD_ZIG_PATH=$(echo "$MMX_CACHE/zig-$ZIG_VERSION"/lib/python3*/site-packages/ziglang/zig)
export CARGO_ZIGBUILD_ZIG_PATH
# shellcheck disable=SC2034 # of the script that sources this
zigbuild=$MMX_CACHE/zigbuild-$ZIGBUILD_VERSION/bin/cargo-zigbuild
