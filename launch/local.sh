#!/bin/sh
# N processes of one job on this machine, each with the devices that JAX shows it:
#   launch/local.sh N COMMAND...      such as: launch/local.sh 2 train --config=quickstart --workdir=runs/two
# SIGTERM and Ctrl-C go to all of them, which save and leave. Ends with the first status that is not 0.
# $PORT: of the coordinator (a free one); $JAXMLIC: the command (jaxmlic).
set -u
if [ $# -lt 2 ] || ! [ "$1" -ge 1 ] 2>/dev/null; then
    echo "usage: $0 PROCESSES COMMAND..., such as: $0 2 train --config=quickstart --workdir=runs/two" >&2
    exit 2
fi
count=$1
shift
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
pids=
trap 'kill -TERM $pids 2>/dev/null' TERM INT
for id in $(seq 0 $((count - 1))); do
    ${JAXMLIC:-jaxmlic} "$@" --coordinator="localhost:$port" --num-processes="$count" --process-id="$id" &
    pids="$pids $!"
done
status=0
for pid in $pids; do
    wait "$pid"
    one=$?
    # A signal to this script ends `wait` early: the process is still there, and saves.
    while kill -0 "$pid" 2>/dev/null; do
        wait "$pid"
        one=$?
    done
    if [ "$status" -eq 0 ]; then status=$one; fi
done
exit "$status"
