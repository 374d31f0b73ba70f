#!/usr/bin/env bash
# Runs a command on all workers of a TPU, in ~/clara_jax with the virtual environment of tpu_setup.sh.
#
#   launch/tpu_run.sh NAME --zone ZONE [--queued] [--logs DIR] [--project PROJECT] [--dry-run] -- COMMAND...
#   launch/tpu_run.sh NAME --zone ZONE [--queued] --stop
#
#   --queued      NAME is a queued resource; the command runs on all its slices
#   --logs DIR    collect what the workers write in DIR here, a file for each, besides printing it
#   --stop        tell the runs there to save and end (SIGTERM); closing this script's connection does not end them
#   --dry-run     print the commands, run nothing
set -euo pipefail
# shellcheck source=launch/tpu_common.sh
source "${BASH_SOURCE[0]%/*}/tpu_common.sh"

logs='' stop=''
while (($#)); do
  case $1 in
    --logs)
      value "$@"
      logs=$2
      shift 2
      ;;
    --stop)
      stop=1
      shift
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
check
mapfile -t all < <(everywhere)
if [[ -n $stop ]]; then
  # The brackets keep the pattern from finding the shell that carries it.
  tpus ssh "$tpu" "${all[@]}" "--command=pkill -TERM -f '[p]ython[0-9.]* -m clara_jax[.]' || true"
  exit
fi
(($#)) || mistake "say which command to run, behind --"
# A worker that is gone is noticed after two minutes, not when TCP gives up.
flags=("--ssh-flag=-o ServerAliveInterval=30" "--ssh-flag=-o ServerAliveCountMax=4")
code="exec > >(exec sed -u \"s/^/[\$(hostname)] /\") 2>&1; cd ~/clara_jax && . ~/clara_venv/bin/activate"
launched() { tpus ssh "$tpu" "${all[@]}" "${flags[@]}" "--command=$code && exec $(quoted "$@")"; }

# Lines as they come, and each into the file of the worker that its prefix names.
collect() {
  local line worker
  while IFS= read -r line; do
    printf '%s\n' "$line"
    worker=gcloud
    [[ ! $line =~ ^\[([[:alnum:]_.-]+)\]\  ]] || worker=${BASH_REMATCH[1]}
    printf '%s\n' "$line" >>"$logs/$worker.log"
  done
}

if [[ -n $logs && -z $dry_run ]]; then
  mkdir -p "$logs"
  launched "$@" 2>&1 | collect
else
  launched "$@"
fi
