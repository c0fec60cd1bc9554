#!/bin/bash
# A node as a shell script is one: takes commands one by one, and retains its status.
# Usage: node.sh PORT ROOT NAME
port=$1 root=$2 name=$3
say() { mosquitto_pub -r -p "$port" -t "$root/$name/STATUS" -m "$1"; }
running=
say ALIVE
while true; do
    read -r word rest < <(mosquitto_sub -p "$port" -t "$root/$name/COMMAND" -C 1)
    say "Command $word received"
    case $word in
        START) sleep 600 & running=$!; say STARTED ;;
        STOP) kill "$running"; say STOPPED ;;
        TERMINATE) say TERMINATED; exit 0 ;;
    esac
done
