# shellcheck shell=bash
# Sourced after env.sh by the scripts that compile for 64-bit Arm and run what they compiled by qemu-user: installs the
# compilers and the Rust target where they are missing, and tells cargo of them. What qemu-aarch64 of Debian 12 (7.2) can
# play: cortex-a72 (NEON), cortex-a76 (with the dot product), max (with i8mm).
need_debian qemu-aarch64 qemu-user
need_debian aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
arm=aarch64-unknown-linux-gnu
rust_target $arm
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu="--sysroot=/usr/aarch64-linux-gnu -I/usr/aarch64-linux-gnu/include"
