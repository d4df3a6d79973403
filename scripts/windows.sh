# shellcheck shell=bash
# Sourced after env.sh by the scripts that compile for 64-bit Windows (the GNU kind) and run what they compiled by wine: installs
# the compilers, the Rust target and wine where they are missing, and tells cargo of them.
#
# std::thread wants mingw's posix flavour. What Debian 12 has is older than two things: mingw's headers lack a structure that
# ggml asks for, and wine lacks a DLL that Rust's std imports; both are made here. ggml's CMake names its libraries NAME.a there,
# llama-cpp-sys-2 looks for libNAME.a: ggml's project is told their prefix. GCC's libraries and winpthreads go into the program,
# and after them what they ask of the system, since ld looks at each library once.
need_debian x86_64-w64-mingw32-g++-posix g++-mingw-w64-x86-64-posix
need_debian /usr/lib/wine/wine64 wine64
windows=x86_64-pc-windows-gnu
rust_target $windows
windows_tools=$MMX_CACHE/windows-tools
mkdir -p "$windows_tools"
# made FILE: from stdin, touched only if it says something else, so that nothing is compiled anew
made() { cat >"$1.part"; if cmp -s "$1.part" "$1"; then rm "$1.part"; else mv "$1.part" "$1"; fi; }
made "$windows_tools/power.h" <<'C'
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
made "$windows_tools/bcryptprimitives.c" <<'C'
/* the one function of it that Rust's std imports, for wines before 9 */
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length) { return SystemFunction036(buffer, (ULONG)length); }
C
made "$windows_tools/prefix.cmake" <<'CMAKE'
# once all of ggml's targets are known
cmake_language(DEFER CALL set_target_properties ggml ggml-base ggml-cpu PROPERTIES PREFIX lib)
CMAKE
made "$windows_tools/linker" <<'SH'
#!/bin/sh
exec x86_64-w64-mingw32-gcc-posix "$@" -lmingwex -lmsvcrt -ladvapi32 -lkernel32 -lgcc
SH
chmod +x "$windows_tools/linker"
[ "$windows_tools/bcryptprimitives.dll" -nt "$windows_tools/bcryptprimitives.c" ] ||
  x86_64-w64-mingw32-gcc-posix -shared -o "$windows_tools/bcryptprimitives.dll" "$windows_tools/bcryptprimitives.c" -ladvapi32
home=${CARGO_HOME:-$HOME/.cargo}
export CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc-posix CXX_x86_64_pc_windows_gnu=x86_64-w64-mingw32-g++-posix
export AR_x86_64_pc_windows_gnu=x86_64-w64-mingw32-ar
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=$windows_tools/linker
export BINDGEN_EXTRA_CLANG_ARGS_x86_64_pc_windows_gnu="--sysroot=/usr/x86_64-w64-mingw32 -I/usr/x86_64-w64-mingw32/include"
export CMAKE_PROJECT_ggml_INCLUDE="$windows_tools/prefix.cmake"
# no file names of this machine in what goes to others
flags="-ffile-prefix-map=$home/registry/src/= -ffile-prefix-map=$PWD/= -include $windows_tools/power.h"
export CFLAGS_x86_64_pc_windows_gnu=$flags CXXFLAGS_x86_64_pc_windows_gnu=$flags
export RUSTFLAGS="--remap-path-prefix=$home/registry/src/= --remap-path-prefix=$PWD/= --remap-path-prefix=$PWD= \
  -Clink-arg=-Wl,-Bstatic -Clink-arg=-lstdc++ -Clink-arg=-lpthread -Clink-arg=-Wl,-Bdynamic"
export CARGO_PROFILE_RELEASE_DEBUG=false
# the program, too, looks for DLLs of the folder it is started from: wine's own path names that of the stand-in
# shellcheck disable=SC2034 # of the scripts that source this
wine=/usr/lib/wine/wine64
export WINEPREFIX=${WINEPREFIX:-$MMX_CACHE/wine} WINEDEBUG=-all WINEPATH="Z:${windows_tools//\//\\}"
