#!/usr/bin/env bash
# Keeps a run going on TPUs that may be preempted: creates, sets up, runs; when the TPU is gone, all of it again.
#
#   launch/tpu_watch.sh NAME --zone ZONE --type TYPE [options] -- COMMAND...
#   launch/tpu_watch.sh pod --zone us-east5-a --type v5p-128 --spot -- \
#     python -m clara_jax.train --config configs/mistral7b_scp.py:data=/mnt/shared/data --workdir /mnt/shared/runs/scp
#
# The command's run directory lies in a bucket or on a disk that outlives the TPU; then the same command goes on where
# the run was. It ends with 0 when the command has ended with 0 on a TPU that is still there.
#
#   --type, --slices, --version, --spot, --reserved    as for tpu_create.sh; a queued resource is asked for in any case
#   --clone URL, --ref REF                             as for tpu_setup.sh
#   --logs DIR       collect logs in DIR/1, DIR/2, ... , one for each time the command is run
#   --retries N      how often a command that fails on a TPU that is there is tried again; default 3
#   --interval S     seconds between looks at the TPU; default 60
#   --project PROJECT, --dry-run
set -euo pipefail
# shellcheck source=launch/tpu_common.sh
source "${BASH_SOURCE[0]%/*}/tpu_common.sh"

type='' logs='' retries=3 interval=60 create=() setup=()
while (($#)); do
  case $1 in
    --logs | --retries | --interval)
      value "$@"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --type | --slices | --version)
      value "$@"
      [[ $1 != --type ]] || type=$2
      create+=("$1" "$2")
      shift 2
      ;;
    --spot | --reserved)
      create+=("$1")
      shift
      ;;
    --clone | --ref)
      value "$@"
      setup+=("$1" "$2")
      shift 2
      ;;
    --)
      shift
      break
      ;;
    *)
      take "$@"
      shift "$taken"
      ;;
  esac
done
[[ -n $type ]] || mistake "--type is missing"
positive --interval "$interval"
[[ $retries =~ ^[0-9]+$ ]] || mistake "--retries is '$retries'; it must be a whole number"
(($#)) || mistake "say which command to run, behind --"
queued=1
check
common=("$tpu" --zone "$zone" --queued)
[[ -z $project ]] || common+=(--project "$project")
[[ -z $dry_run ]] || common+=(--dry-run)

provide() {
  [[ -z $1 ]] || tpus delete "$tpu" --force
  "$here/tpu_create.sh" "${common[@]}" "${create[@]}" && "$here/tpu_setup.sh" "${common[@]}" "${setup[@]}"
}

# Runs the command, and gives it up when the TPU is gone: a connection may hang then.
attempt() {
  local collect=() run now status=0
  [[ -z $logs ]] || collect=(--logs "$logs/$1")
  shift
  set -m # a group of its own, so that ssh ends with it
  "$here/tpu_run.sh" "${common[@]}" "${collect[@]}" -- "$@" &
  run=$!
  set +m
  trap 'kill -TERM -- "-$run" 2>/dev/null || true; exit 143' INT TERM
  while kill -0 "$run" 2>/dev/null; do
    sleep "$interval" &
    wait -n "$run" $! 2>/dev/null || true
    now=$(state) # empty also where gcloud could not ask: no reason to give up a run
    [[ -z $now ]] || usable "$now" || kill -TERM -- "-$run" 2>/dev/null || true
  done
  trap - INT TERM
  wait "$run" || status=$?
  return "$status"
}

if [[ -n $dry_run ]]; then
  provide gone
  "$here/tpu_run.sh" "${common[@]}" ${logs:+--logs "$logs/1"} -- "$@"
  exit
fi

failures=0 number=0
while :; do
  now=$(state)
  if usable "$now"; then
    ((number)) || "$here/tpu_setup.sh" "${common[@]}" "${setup[@]}"
  else
    echo "$name: $tpu is ${now:-not there}; creating it" >&2
    status=0
    provide "$now" || status=$?
    ((status != 2)) || exit 2 # the command line is wrong, here or for gcloud
    ((!status)) || { echo "$name: no TPU yet" >&2 && sleep "$interval" && continue; }
  fi
  number=$((number + 1)) status=0
  attempt "$number" "$@" || status=$?
  # A TPU that is being taken away says so a little later than its processes end; and a run that has saved for that
  # reason ends with 0.
  sleep "$interval"
  usable "$(state)" || continue
  ((status)) || exit 0
  failures=$((failures + 1))
  echo "$name: the command ended with exit code $status, and $tpu is there ($failures of $((retries + 1)))" >&2
  ((failures <= retries)) || exit "$status"
done
