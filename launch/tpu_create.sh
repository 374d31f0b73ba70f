#!/usr/bin/env bash
# Creates a TPU VM, or a queued resource of one or several slices, and waits until it can be used.
#
#   launch/tpu_create.sh NAME --zone ZONE --type TYPE [options] [-- GCLOUD_FLAGS...]
#   launch/tpu_create.sh pod --zone us-east5-a --type v5p-128 --queued --spot
#
#   --type TYPE          v4-8, v5litepod-16 (v5e), v5p-128, v6e-8, ...; tpu7x is to be had on GKE only (docs/pods.md)
#   --slices N           several slices that train together; asks for a queued resource
#   --queued             ask for a queued resource, which waits until there is room
#   --spot, --reserved   cheap and preemptible; from a reservation
#   --version VERSION    of the runtime; default: the one for the type
#   --project PROJECT    default: gcloud's
#   --no-wait            return as soon as a queued resource is asked for
#   --dry-run            print the commands, run nothing
set -euo pipefail
# shellcheck source=launch/tpu_common.sh
source "${BASH_SOURCE[0]%/*}/tpu_common.sh"

type='' version='' slices=1 kind=() wait=1
while (($#)); do
  case $1 in
    --type | --version | --slices)
      value "$@"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --spot | --reserved) kind=("$1") ;;
    --no-wait) wait= ;;
    --)
      shift
      break
      ;;
    *)
      take "$@"
      shift "$taken"
      continue
      ;;
  esac
  shift
done
[[ -n $type ]] || mistake "--type is missing"
positive --slices "$slices"
check
if [[ -z $version ]]; then
  case $type in
    v[234]-*) version='tpu-ubuntu2204-base' ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) mistake "no runtime is known for --type $type; name one with --version" ;;
  esac
fi

if ((slices == 1)) && [[ -z $queued ]]; then
  tpus create "$tpu" "--accelerator-type=$type" "--version=$version" "${kind[@]}" "$@"
  exit
fi
queued=1 nodes=("--node-id=$tpu")
((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$tpu")
tpus create "$tpu" "--accelerator-type=$type" "--runtime-version=$version" "${nodes[@]}" "${kind[@]}" "$@"
[[ -n $wait && -z $dry_run ]] || exit 0
while now=$(state) && ! usable "$now"; do
  case $now in
    FAILED | SUSPEND* | DELETING) echo "error: $name: $tpu is $now; delete it and ask again" >&2 && exit 1 ;;
  esac
  echo "$name: $tpu is ${now:-not there yet}" >&2
  sleep "${CLARA_POLL_SECONDS:-30}"
done
echo "$name: $tpu is $now" >&2
