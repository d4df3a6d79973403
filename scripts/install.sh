#!/bin/sh
# Installs mmx without root and without a compiler: takes the archive for this system and CPU from a folder of the web (or of this
# machine), checks its SHA-256, and unpacks it.
#
#   sh install.sh --from ADDRESS [--prefix DIR] [--version VERSION]
#
# ADDRESS   where the archives of scripts/release lie, with their .sha256 files: https://..., file:///..., or a folder
# --prefix  where to install (~/.local unless given): everything goes to DIR/lib/mmx-lm, links to DIR/bin and DIR/share
#
# A download that is damaged, does not fit or does not start leaves what was installed before as it was. Files that are not mmx's
# are never replaced.
set -eu
VERSION=0.2.0

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $1"; [ -z "${2:-}" ] || { say; say "hint: $2"; }; exit 1; }
misuse() { say "error: $1"; say; say "usage: sh install.sh --from ADDRESS [--prefix DIR] [--version VERSION]"; exit 2; }

from='' prefix=${HOME:-}/.local
while [ $# -gt 0 ]; do
  case $1 in
    --from | --prefix | --version) [ $# -ge 2 ] || misuse "$1: expected a value, found none" ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) misuse "expected --from, --prefix or --version, found $1" ;;
  esac
  case $1 in --from) from=$2 ;; --prefix) prefix=$2 ;; --version) VERSION=$2 ;; esac
  shift 2
done
[ -n "$from" ] || misuse "--from: expected the address of the archives, found none"
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac

system=$(uname -s) cpu=$(uname -m)
case $system-$cpu in
  Linux-x86_64 | Linux-amd64) target=x86_64-linux ;;
  Linux-aarch64 | Linux-arm64) target=aarch64-linux ;;
  Darwin-arm64) target=aarch64-macos ;;
  *) fail "expected Linux on x86_64 or aarch64, or macOS on arm64, found $system on $cpu" "build it there: docs/building.md in mmx's sources" ;;
esac
if [ "$system" = Linux ]; then
  # glibc is what the programs need newest
  libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p') || libc=''
  [ -n "$libc" ] || fail "expected a system with glibc 2.28 or newer, found none of it (musl?)" "build it there: docs/building.md in mmx's sources"
  minor=${libc#*.}; minor=${minor%%.*}
  [ "${libc%%.*}" -gt 2 ] || [ "$minor" -ge 28 ] || fail "expected glibc 2.28 or newer, found $libc"
fi

name=mmx-$VERSION-$target
home=$prefix/lib/mmx-lm
# what is there and is not ours stays: programs, completions and pages are links into our folder
owned() { [ ! -e "$1" ] && [ ! -L "$1" ] || { [ -L "$1" ] && case $(readlink "$1") in */lib/mmx-lm/*) true ;; *) false ;; esac; }; }
for program in mmx mmx-train; do
  owned "$prefix/bin/$program" || fail "$prefix/bin/$program: expected nothing or an installation of this script, found another file" "remove it, or choose another --prefix"
done
{ [ ! -e "$home" ] && [ ! -L "$home" ]; } || [ -f "$home/bin/mmx" ] || fail "$home: expected an installation of mmx, found something else" "remove it, or choose another --prefix"

(umask 022; mkdir -p "$prefix/lib" "$prefix/bin") 2>/dev/null || fail "$prefix: a folder cannot be made there" "--prefix DIR names one that is yours"
work=$(mktemp -d "$prefix/lib/.mmx-lm.XXXXXX" 2>/dev/null) || fail "$prefix/lib: nothing can be written there" "--prefix DIR names a folder that is yours"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# fetch FILE: from the address into the folder of this run
fetch() {
  say "fetching $1"
  case $from in
    http://* | https://* | file://*)
      if command -v curl >/dev/null 2>&1; then
        curl --fail --silent --show-error --location --retry 2 --output "$work/$1" "$from/$1" >&2
      elif command -v wget >/dev/null 2>&1 && case $from in file:*) false ;; *) true ;; esac; then
        wget --quiet --tries 3 --output-document "$work/$1" "$from/$1" >&2
      else
        fail "neither curl nor wget is here" "apt-get install curl"
      fi ;;
    *) cp "$from/$1" "$work/$1" ;;
  esac || fail "$from/$1: it cannot be fetched into $work"
}
from=${from%/}
fetch "$name.tar.gz.sha256"
fetch "$name.tar.gz"
expected=$(sed -n '1s/^\([0-9a-f]\{64\}\)\([^0-9a-f].*\)\{0,1\}$/\1/p' "$work/$name.tar.gz.sha256")
[ -n "$expected" ] || fail "$from/$name.tar.gz.sha256: expected 64 hexadecimal digits, found $(head -c 80 "$work/$name.tar.gz.sha256")"
if command -v sha256sum >/dev/null 2>&1; then found=$(sha256sum "$work/$name.tar.gz"); else found=$(shasum -a 256 "$work/$name.tar.gz"); fi
found=${found%% *}
[ "$found" = "$expected" ] || fail "$from/$name.tar.gz: expected SHA-256 $expected, found $found" "fetch it again; if it stays so, tell who serves it"

tar -C "$work" -xzf "$work/$name.tar.gz" || fail "$prefix: $name does not unpack there" "is the disk full? df -h $prefix"
rm "$work/$name.tar.gz"
"$work/$name/bin/mmx" --version >"$work/version" 2>"$work/said" || fail "$name: its program does not start here: $(cat "$work/said")"
for file in "$work/$name"/share/man/man1/*.1; do [ ! -e "$file" ] || owned "$prefix/share/man/man1/${file##*/}" || fail "$prefix/share/man/man1/${file##*/}: expected nothing or a link of this script, found another file"; done

# the new one in the place of the old one, which comes back if that fails
[ ! -e "$home" ] || mv "$home" "$work/before"
mv "$work/$name" "$home" || { [ ! -e "$work/before" ] || mv "$work/before" "$home"; fail "$home: it cannot be put there"; }
# link FOLDER FILE: DIR/FOLDER/NAME leads to a file of the installation
link() {
  (umask 022; mkdir -p "$prefix/$1")
  place=$prefix/$1/${2##*/}
  if owned "$place"; then ln -sf "$2" "$place"; else say "left as it is: $place"; fi
}
for file in "$home"/bin/*; do link bin "$file"; done
for folder in man/man1 bash-completion/completions zsh/site-functions fish/vendor_completions.d; do
  for file in "$home/share/$folder"/*; do [ ! -f "$file" ] || link "share/$folder" "$file"; done
done
[ -e "$home/bin/mmx-train" ] || { [ ! -L "$prefix/bin/mmx-train" ] || rm "$prefix/bin/mmx-train"; }
say "installed: $(cat "$work/version"), $prefix/bin/mmx"
case :$PATH: in *":$prefix/bin:"*) ;; *) say "to find it: export PATH=\"$prefix/bin:\$PATH\"" ;; esac
say "what this machine has and lacks: mmx doctor"
