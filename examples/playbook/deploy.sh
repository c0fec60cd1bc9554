#!/usr/bin/env bash
# Starts a node on every host of ./inventory over ssh: copies its functions there, and leaves the
# node running. The hosts have `tael` installed. Usage: deploy.sh BROKER ROOT
set -euo pipefail
cd "$(dirname "$0")"
if (($# != 2)); then
    echo "usage: deploy.sh BROKER ROOT" >&2
    exit 64
fi
broker=$1 root=$2

while read -r node host functions options <&3; do
    [[ -n $node && $node != \#* ]] || continue
    ssh "$host" mkdir -p .tael-nodes
    scp -q "$functions" "$host:.tael-nodes/$node.sh"
    # An earlier one of that name ends first; it says TERMINATED.
    tael play -H "$broker" --root "$root" /dev/stdin <<<"SEND $node TERMINATE" >/dev/null
    # shellcheck disable=SC2029 # expanded here on purpose
    ssh "$host" "setsid -f tael node '$node' --root '$root' -H '$broker' \
        --functions \"\$HOME/.tael-nodes/$node.sh\" $options \
        </dev/null >>.tael-nodes/$node.log 2>&1"
    echo "$node on $host"
done 3<inventory
