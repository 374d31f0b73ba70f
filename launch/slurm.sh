#!/usr/bin/env bash
# Submits a run on GPUs to Slurm: one process for each GPU, or for each node.
#
#   launch/slurm.sh --nodes N --gpus G [options] -- COMMAND...
#   launch/slurm.sh --nodes 4 --gpus 8 --time 24:00:00 -- python -m clara_jax.train --config ... --workdir /shared/run
#
# JAX finds coordinator and processes in Slurm's environment. When one process fails, srun ends the others. Two minutes
# before the time is over all get SIGTERM: the run saves, and goes on when the same command is given again. A job that is
# preempted, or whose node fails, is queued again by itself. The checkout and the run directory lie on a shared disk.
#
#   --nodes N            default 1
#   --gpus G             GPUs of each node, default 1
#   --per gpu|node       a process for each, default gpu
#   --time T             limit, default 24:00:00
#   --partition P, --account A, --qos Q
#   --cpus C             CPU cores of a process
#   --name NAME          of the job, default clara
#   --logs DIR           default slurm-logs
#   --dry-run            print the command, submit nothing
set -euo pipefail
# shellcheck source=launch/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"

nodes=1 gpus=1 per=gpu limit=24:00:00 job=clara logs=slurm-logs options=() step=()
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
    --nodes | --gpus)
      positive "$@"
      printf -v "${1#--}" '%s' "$2"
      ;;
    --cpus)
      positive "$@"
      options+=("--cpus-per-task=$2")
      step+=("--cpus-per-task=$2") # srun does not take it from the job
      ;;
    --per)
      [[ $2 == gpu || $2 == node ]] || mistake "--per is '$2'; it must be gpu or node"
      per=$2
      ;;
    --time) limit=$2 ;;
    --name) job=$2 ;;
    --logs) logs=$2 ;;
    --partition | --account | --qos) options+=("$1=$2") ;;
    *) mistake "unknown option $1" ;;
  esac
  shift 2
done
(($#)) || mistake "say which command to run, behind --"
needs sbatch "Slurm's client, or go to a login node"
tasks=1
[[ $per == node ]] || tasks=$gpus
srun=(srun --kill-on-bad-exit=1 --label "${step[@]}" "$@")
run mkdir -p "$logs"
run sbatch "--job-name=$job" "--nodes=$nodes" "--ntasks-per-node=$tasks" "--gpus-per-node=$gpus" "--time=$limit" \
  "${options[@]}" --signal=TERM@120 --requeue --open-mode=append "--output=$logs/%x-%j.log" "--wrap=exec $(quoted "${srun[@]}")"
