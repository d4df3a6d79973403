#!/usr/bin/env bash
# The systemd unit of docs/serving.md: systemd-analyze has nothing to say about it, and judges its exposure as low.
#   service.sh MMX
set -euo pipefail
mmx=$(realpath "$1")
cd "$(dirname "$0")/../.."
MMX_NO_TRAIN=1 . scripts/env.sh
need_debian systemd-analyze systemd
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
unit=$folder/mmx.service
awk '/^```ini$/ { inside = 1; next } /^```$/ { inside = 0 } inside' docs/serving.md | sed "s#/usr/local/bin/mmx#$mmx#" >"$unit"
grep -q '^ExecStart=.* serve --config ' "$unit"
said=$(systemd-analyze verify --man=no "$unit" 2>&1) || { printf '%s\n' "$said"; exit 1; }
[ -z "$said" ] || { printf '%s\n' "$said"; exit 1; }
# tenths: 20 of 100, systemd's "OK"; a unit without any of this has 96
systemd-analyze security --offline=true --threshold=20 --no-pager "$unit" >"$folder/judged" || { tail -1 "$folder/judged"; exit 1; }
printf 'hf: %s\n' "$(grep -o 'exposure level for mmx.service: [0-9.]*' "$folder/judged")"
