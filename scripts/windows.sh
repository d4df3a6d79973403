# shellcheck shell=bash
# Sourced after env.sh by the scripts that compile for 64-bit Windows (the GNU kind) and run what they compiled by wine: installs
# the compilers, the Rust target and wine where they are missing, and tells cargo of them.
#
# std::thread wants mingw's posix flavour. What Debian 12 has is older than two things: mingw's headers lack a structure that
# ggml asks for, and wine lacks a DLL that Rust's std imports; both are made here. llama-cpp-sys-2 looks for libNAME.a, ggml's
# CMake names some of them NAME.a there: linked by name.
need_debian x86_64-w64-mingw32-g++-posix g++-mingw-w64-x86-64-posix
need_debian /usr/lib/wine/wine64 wine64
windows=x86_64-pc-windows-gnu
if command -v rustup >/dev/null && ! rustup target list --installed | grep -qx $windows; then
  [ -z "${MMX_NO_INSTALL:-}" ] || missing "the Rust target $windows" "rustup target add $windows"
  rustup target add $windows >&2 || missing "the Rust target $windows" "rustup target add $windows"
fi
windows_tools=$MMX_CACHE/windows-tools
mkdir -p "$windows_tools"
cat >"$windows_tools/power.h" <<'C'
/* what processthreadsapi.h of a newer mingw declares */
#ifndef __ASSEMBLER__
#include <windows.h>
#ifndef THREAD_POWER_THROTTLING_CURRENT_VERSION
#define THREAD_POWER_THROTTLING_CURRENT_VERSION 1
#define THREAD_POWER_THROTTLING_EXECUTION_SPEED 1
#define THREAD_POWER_THROTTLING_VALID_FLAGS 1
typedef struct { ULONG Version, ControlMask, StateMask; } THREAD_POWER_THROTTLING_STATE;
#endif
#endif
C
cat >"$windows_tools/bcryptprimitives.c" <<'C'
/* the one function of it that Rust's std imports, for wines before 9 */
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length) { return SystemFunction036(buffer, (ULONG)length); }
C
[ -s "$windows_tools/bcryptprimitives.dll" ] ||
  x86_64-w64-mingw32-gcc-posix -shared -o "$windows_tools/bcryptprimitives.dll" "$windows_tools/bcryptprimitives.c" -ladvapi32
export CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc-posix CXX_x86_64_pc_windows_gnu=x86_64-w64-mingw32-g++-posix
export AR_x86_64_pc_windows_gnu=x86_64-w64-mingw32-ar
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc-posix
export BINDGEN_EXTRA_CLANG_ARGS_x86_64_pc_windows_gnu="--sysroot=/usr/x86_64-w64-mingw32 -I/usr/x86_64-w64-mingw32/include"
# the program, too, looks for DLLs of the folder it is started from: wine's own path names that of the stand-in
export WINEDEBUG=-all WINEPATH="Z:${windows_tools//\//\\}"
