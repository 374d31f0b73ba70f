#!/usr/bin/env bash
# Runs a command as N processes on this machine, which train together.
#
#   launch/local.sh N [--port PORT] [--grace SECONDS] [--dry-run] [--] COMMAND...
#   launch/local.sh 2 python -m clara_jax.train --config configs/smoke.py --workdir runs/smoke
#
# Each process gets CLARA_COORDINATOR=127.0.0.1:PORT, CLARA_PROCESSES=N and CLARA_PROCESS=0 ... N-1. Their output is
# prefixed by [0] ... [N-1]. When one ends with an error or is killed, the others are told to end (SIGTERM), and killed
# where they have not after the grace; one line says which process ended and how. SIGTERM and Ctrl-C are passed on to
# all, and waited for: a run saves then.
#
#   --port PORT       of the coordinator; default: a free one
#   --grace SECONDS   that the others have after one has failed; default 10
#   --dry-run         print the commands, run nothing
#
# Exit code: 0 where all have ended with 0, else that of the process that failed first (128 + signal where it was
# killed); 2 for a mistake in the command line. Needs bash 4.4 or newer.
set -euo pipefail
# shellcheck source=launch/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"

count='' port='' grace=10
while (($#)); do
  case $1 in
    -h | --help) usage ;;
    --dry-run) dry_run=1 ;;
    --port | --grace)
      value "$@"
      positive "$@"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --)
      shift
      break
      ;;
    -*) mistake "unknown option $1" ;;
    *)
      [[ -z $count ]] || break
      count=$1
      positive N "$count"
      ;;
  esac
  shift
done
[[ -n $count ]] || mistake "say how many processes"
(($#)) || mistake "say which command to run"

in_use() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
while [[ -z $port ]]; do
  port=$((20000 + RANDOM % 12000)) # below the ports that systems give out by themselves
  if in_use "$port"; then port=''; fi
done

environment() {
  echo "CLARA_COORDINATOR=127.0.0.1:$port" "CLARA_PROCESSES=$count" "CLARA_PROCESS=$1"
}

if [[ -n $dry_run ]]; then
  for ((i = 0; i < count; i++)); do echo "$(environment "$i") $(quoted "$@")"; done
  exit 0
fi

# Job control gives each process a group of its own: a terminal's Ctrl-C then comes to this script alone, which passes
# it on once, and whatever a process has started ends with it.
set -m
exec 3>&2
processes=() readers=() passed_on=''

say() { echo "$name: $*" >&3; }

signal() {
  local process
  for process in "${processes[@]}"; do
    [[ -z $process ]] || kill "-$1" -- "-$process" 2>/dev/null || true
  done
}
# shellcheck disable=SC2329 # the traps call it
pass_on() {
  passed_on=$1
  say "SIG$1, passed on to all processes; waiting for them"
  signal "$1"
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM
trap 'pass_on TERM' HUP

for ((i = 0; i < count; i++)); do
  # The reader outlives signals: what a process says last is worth most.
  exec {out}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$i] /" 3>&-)
  readers+=($!)
  read -ra variables <<<"$(environment "$i")"
  env "${variables[@]}" "$@" </dev/null >&"$out" 2>&1 {out}>&- 3>&- &
  processes+=($!)
  exec {out}>&-
done

set +m
exec 2>/dev/null # bash would report every job that ends; this script says what matters, on 3

# How a process ended, in words.
describe() {
  if (($1 > 128)) && kill -l "$(($1 - 128))" >/dev/null 2>&1; then
    echo "was killed by SIG$(kill -l "$(($1 - 128))")"
  else
    echo "ended with exit code $1"
  fi
}

# Whoever waits for a stopped process (SIGSTOP) ends sooner than it does.
name_stopped() {
  local i
  for i in "${!processes[@]}"; do
    [[ -z ${processes[i]} || $(ps -o state= -p "${processes[i]}") != T* ]] || say "process $i is stopped (SIGSTOP)"
  done
}

failure=0 running=$count deadline=
while ((running)); do
  # Of processes found ended at one look, a killed one is the cause and is named first; the others, those too that JAX
  # has aborted (134), ended because of it.
  ended=()
  for i in "${!processes[@]}"; do
    process=${processes[i]}
    if [[ -z $process ]] || kill -0 "$process" 2>/dev/null; then continue; fi
    status=0
    wait "$process" 2>/dev/null || status=$?
    running=$((running - 1)) processes[i]=''
    ((!status)) || kill -KILL -- "-$process" 2>/dev/null || true # what it has left behind
    if ((status > 128 && status != 134)); then ended=("$i $status" "${ended[@]}"); elif ((status)); then ended+=("$i $status"); fi
  done
  if ((${#ended[@]} && !failure)); then
    read -r i failure <<<"${ended[0]}"
    deadline=$((SECONDS + grace))
    say "process $i $(describe "$failure")$( ((!running)) || echo "; ending the others")"
    name_stopped
    signal TERM
  fi
  if [[ -n $deadline ]] && ((running && SECONDS >= deadline)); then
    say "$running still running $grace s later; killed"
    signal KILL
    deadline=''
  fi
  ((!running)) || sleep 0.2 || true
done
for reader in "${readers[@]}"; do wait "$reader" || true; done
[[ -z $passed_on ]] || say "all processes have ended"
exit "$failure"
