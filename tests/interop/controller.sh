#!/bin/bash
# A controller as a shell script is one: sends, and asks for the retained status again and again.
# Usage: controller.sh PORT ROOT NAME
set -eu
port=$1 root=$2 name=$3
send() { mosquitto_pub -q 1 -p "$port" -t "$root/$name/COMMAND" -m "$*"; }
wait_for() {
    local status=
    until [[ $status == *"$1"* ]]; do
        status=$(mosquitto_sub -p "$port" -t "$root/$name/STATUS" -C 1 || true)
    done
    echo "$1"
}
wait_for ALIVE
send START 5201
wait_for STARTED
send STOP
wait_for STOPPED
send TERMINATE
wait_for TERMINATED
