# Runs a broker and its epmd in the current folder, and ends both when the test that has started it
# is gone: the other end of standard input is closed then, however the test has ended.
# Each line `up` on standard input starts the broker. Argument: the program of the broker.
set -u
# The kernel sends it to a group whose parent is gone while one of its processes is frozen.
trap '' HUP
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 </dev/null &
epmd=$!
while read -r word; do
    rm -f ended
    # Written in one step: the test reads it. The broker keeps this process id.
    (
        sh -c 'echo "$$" >pid.new; mv pid.new pid; exec "$0"' "$1"
        echo "$?" >ended.new
        mv ended.new ended
    ) </dev/null &
done
[ -e ended ] || kill -9 "$(cat pid)"
kill -9 "$epmd"
wait
rm -rf "$PWD"
