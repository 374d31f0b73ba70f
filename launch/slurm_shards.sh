#!/usr/bin/env bash
# Compresses a corpus by workers that know nothing of each other, as an array job of Slurm, and then publishes it.
#
#   launch/slurm_shards.sh --shards N [options] -- COMMAND...
#   launch/slurm_shards.sh --shards 64 --at-once 16 -- \
#     python -m clara_jax.compress --checkpoint /shared/runs/e2e --store /shared/stores/wiki --corpus /shared/wiki/
#
# Each task of the array is the command with --shard I --shards N, on other GPUs. A task that is preempted, or whose
# node fails, is queued again by itself and goes on where it was. A last job, which begins when all tasks have ended
# well, publishes what they have compressed; after a failure, give the same command again, and it compresses the rest.
# The checkout, the store and the corpus lie on a shared disk, or the latter two in a bucket.
#
#   --shards N           into how many the corpus is divided
#   --at-once M          tasks that run at a time, default all
#   --gpus G             GPUs of each task, default 1
#   --time T             limit of a task, default 24:00:00
#   --partition P, --account A, --qos Q
#   --cpus C             CPU cores of a task
#   --name NAME          of the job, default clara-shards
#   --logs DIR           default slurm-logs
#   --dry-run            print the commands, submit nothing
set -euo pipefail
# shellcheck source=launch/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"

shards='' at_once='' gpus=1 limit=24:00:00 job=clara-shards logs=slurm-logs options=() step=()
while (($#)); do
  case $1 in
    -h | --help) usage ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --)
      shift
      break
      ;;
    -*) value "$@" ;;
    *) mistake "unexpected argument '$1'; the command comes behind --" ;;
  esac
  case $1 in
    --shards | --gpus)
      positive "$@"
      printf -v "${1#--}" '%s' "$2"
      ;;
    --at-once)
      positive "$@"
      at_once=%$2
      ;;
    --cpus)
      positive "$@"
      options+=("--cpus-per-task=$2")
      step+=("--cpus-per-task=$2") # srun does not take it from the job
      ;;
    --time) limit=$2 ;;
    --name) job=$2 ;;
    --logs) logs=$2 ;;
    --partition | --account | --qos) options+=("$1=$2") ;;
    *) mistake "unknown option $1" ;;
  esac
  shift 2
done
[[ -n $shards ]] || mistake "--shards is missing"
(($#)) || mistake "say which command to run, behind --"
publication "$@"
needs sbatch "Slurm's client, or go to a login node"
# The array's variable is for the shell of the task, which reads the rest of the line as it was given.
# shellcheck disable=SC2016
task="exec $(quoted srun --kill-on-bad-exit=1 --label "${step[@]}" "$@")"' --shard "$SLURM_ARRAY_TASK_ID"'" --shards $shards"
run mkdir -p "$logs"
submit=(sbatch --parsable "--job-name=$job" --nodes=1 --ntasks=1 "${options[@]}" --open-mode=append)
array=$(run "${submit[@]}" "--array=0-$((shards - 1))$at_once" "--gpus-per-node=$gpus" "--time=$limit" --signal=TERM@120 \
  --requeue "--output=$logs/%x-%A_%a.log" "--wrap=$task")
[[ -z $dry_run ]] || { echo "$array" && array=ARRAY; }
run "${submit[@]}" "--dependency=afterok:${array%%;*}" --kill-on-invalid-dep=yes "--time=$limit" \
  "--output=$logs/%x-publish-%j.log" "--wrap=exec $(quoted "${publish[@]}")"
