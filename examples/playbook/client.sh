# Functions of the nodes `laptop1` and `laptop2`:
# tael node laptop1 --functions client.sh --allow-dir /var/tmp
startFunction() {
    iperf3 -c "$1" -p "$2" -t "$3" -J >>/var/tmp/iperf3.json &
    LAST_PID=$!
}

stopFunction() {
    kill "$LAST_PID"
}
