#!/bin/bash
# A node as a shell script is one: takes commands one by one, and retains its status.
# Usage: node.sh PORT ROOT NAME
port=$1 root=$2 name=$3
say() { mosquitto_pub -q 1 -r -p "$port" -t "$root/$name/STATUS" -m "$1"; }
# The broker keeps what comes between two commands.
hear() { mosquitto_sub -p "$port" -i "node-$name" -c -q 1 -t "$root/$name/COMMAND" "$@"; }
running=
hear -E
say ALIVE
while true; do
    read -r word rest < <(hear -C 1)
    [[ -z $word ]] || say "Command $word received"
    case $word in
        '') continue ;;
        START) sleep 600 & running=$!; say STARTED ;;
        STOP) kill "$running"; say STOPPED ;;
        TERMINATE) say TERMINATED; exit 0 ;;
    esac
done
