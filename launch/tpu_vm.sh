#!/bin/sh
# A TPU slice: created, set up, the same command on all of its workers, and again after a preemption until it is done:
#   PROJECT=p ZONE=us-central1-a TYPE=v5litepod-16 launch/tpu_vm.sh NAME train --config=FILE[:ARG] --workdir=gs://BUCKET/RUN
# Each worker finds the others from the slice's metadata. The slice is deleted at the end, also after a mistake.
# $VERSION: of its software (v2-alpha-tpuv5-lite); $PACKAGE: what pip installs (jaxmlic[tpu,buckets]); $SPOT=no: no spot
# capacity; $RESTARTS: how often it is created again at most (100); $WAIT: seconds before that is tried again (60).
set -u
if [ $# -lt 2 ] || [ -z "${PROJECT:-}" ] || [ -z "${ZONE:-}" ] || [ -z "${TYPE:-}" ]; then
    echo "usage: PROJECT=... ZONE=... TYPE=... $0 NAME COMMAND..." >&2
    exit 2
fi
name=$1
shift
where="--project=$PROJECT --zone=$ZONE"
tpu="gcloud compute tpus tpu-vm"
command=
for word in "$@"; do
    command="$command '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
done

state() {
    # shellcheck disable=SC2086
    $tpu describe "$name" $where --format='value(state)' 2>/dev/null
}

create() {
    spot=--spot
    if [ "${SPOT:-yes}" = no ]; then spot=; fi
    # shellcheck disable=SC2086
    $tpu create "$name" $where --accelerator-type="$TYPE" --version="${VERSION:-v2-alpha-tpuv5-lite}" $spot &&
        $tpu ssh "$name" $where --worker=all --command="pip install '${PACKAGE:-jaxmlic[tpu,buckets]}'"
}

delete() {
    # shellcheck disable=SC2086
    $tpu delete "$name" $where --quiet
}

trap 'delete; exit 130' INT TERM
restarts=0
while true; do
    if [ "$(state)" != READY ]; then
        if [ -n "$(state)" ]; then delete; fi
        if ! create; then
            if [ -n "$(state)" ]; then delete; fi
            restarts=$((restarts + 1))
            if [ "$restarts" -eq 1 ] || [ "$restarts" -gt "${RESTARTS:-100}" ]; then exit 1; fi
            echo "$name could not be made again, perhaps for want of machines; start $((restarts + 1)) follows" >&2
            sleep "${WAIT:-60}"
            continue
        fi
    fi
    # shellcheck disable=SC2086
    $tpu ssh "$name" $where --worker=all --command="PATH=\$HOME/.local/bin:\$PATH jaxmlic$command"
    status=$?
    if [ "$(state)" = READY ] && [ "$status" -ne 255 ]; then break; fi # 255: ssh lost the worker
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "${RESTARTS:-100}" ]; then break; fi
    echo "$name was preempted or lost; start $((restarts + 1))" >&2
done
delete
exit "$status"
