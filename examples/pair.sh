#!/bin/sh
# Logs in by ssh to a host that reaches only the broker, such as a sequencer behind the firewall of a hospital.
# Both sides need tael, the name of the broker in TAEL_HOST, and one root (TAEL_ROOT; default: tael).
# One side serves, the other one asks: two that serve make a pair in which none speaks.
#
# On that host, for as long as logins are allowed (it needs nc of OpenBSD, and sshd):
#
#   pair.sh serve rescue
#
# On the desk; everything after the name goes to ssh:
#
#   pair.sh ssh rescue ann@seq1
#   pair.sh ssh rescue ann@seq1 df -h /data
#
# ssh encrypts what goes through, and checks the key of the host: the broker reads nothing. A pair has two ends.
# So a second login waits for its turn, or is refused while one goes on.
set -eu

usage() {
    printf 'usage: pair.sh serve NAME [PORT], or pair.sh ssh NAME [USER@]HOST [COMMAND…]\n' >&2
    exit 64
}

[ $# -ge 2 ] || usage
readonly what="$1" name="$2"
shift 2

case $what in
serve)
    # One process makes one pair: the next login needs the next one.
    while :; do
        code=0
        tael pair "$name" -c "nc -N localhost ${1:-22}" || code=$?
        case $code in
        # Wrong options, not authorised, or stopped by a signal.
        64 | 77 | 78 | 130) exit "$code" ;;
        esac
        sleep 1
    done
    ;;
ssh)
    exec ssh -o ProxyCommand="tael pair '$name'" "$@"
    ;;
*) usage ;;
esac
