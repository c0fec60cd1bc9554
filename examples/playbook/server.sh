# Functions of the node `server`: tael node server --functions server.sh
startFunction() {
    iperf3 -s -p "$1" &
    LAST_PID=$!
}

stopFunction() {
    kill "$LAST_PID"
}
