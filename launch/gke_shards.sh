#!/usr/bin/env bash
# Compresses a corpus by workers that know nothing of each other, as an indexed Job of Kubernetes, and then publishes it.
#
#   launch/gke_shards.sh --shards N --image IMAGE --tpu v5e|v6e [options] -- COMMAND...
#   launch/gke_shards.sh --shards 64 --at-once 16 --image IMAGE --tpu v5e -- \
#     python -m clara_jax.compress --checkpoint /shared/runs/e2e --store gs://BUCKET/wiki --corpus 'gs://BUCKET/wiki/*.jsonl.zst'
#
# Each pod is the command with --shard I --shards N, on one host with all of its TPUs, as GKE names them. A pod that is
# preempted, or fails, is started again and goes on where the one before was. When all have ended well, a last Job
# publishes what they have compressed. IMAGE holds this repository with pip install -r requirements.txt 'jax[tpu]'
# 'clara_jax[shards]' and what the buckets of the corpus need (gcsfs, s3fs).
#
#   --shards N           into how many the corpus is divided
#   --at-once M          pods that run at a time, default all
#   --tpu v5e|v6e        hosts of eight chips; none for GPUs or CPUs: --resource says what a pod asks for
#   --resource NAME=N    instead of --tpu, e.g. nvidia.com/gpu=1
#   --spot               on machines that may be taken away
#   --name NAME          of the Jobs, default clara-shards
#   --volume CLAIM       a PersistentVolumeClaim that is mounted at /shared
#   --secret NAME        whose keys are environment variables of the pods (AWS_ACCESS_KEY_ID, ...)
#   --service-account A  of the pods: on GKE, who may read and write the buckets
#   --no-wait            submit the workers alone; publish later, by COMMAND's --store and --publish
#   --dry-run            print the Jobs and the commands, submit nothing
set -euo pipefail
# shellcheck source=launch/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"

shards='' at_once='' image='' tpu='' resource='' spot='' job=clara-shards volume='' secret='' account='' wait=1
while (($#)); do
  case $1 in
    -h | --help) usage ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --spot) spot=1 && shift && continue ;;
    --no-wait) wait='' && shift && continue ;;
    --)
      shift
      break
      ;;
    -*) value "$@" ;;
    *) mistake "unexpected argument '$1'; the command comes behind --" ;;
  esac
  case $1 in
    --shards)
      positive "$@"
      shards=$2
      ;;
    --at-once)
      positive "$@"
      at_once=$2
      ;;
    --image) image=$2 ;;
    --tpu)
      [[ $2 == v5e || $2 == v6e ]] || mistake "--tpu is '$2'; it must be v5e or v6e"
      tpu=$2
      ;;
    --resource)
      [[ $2 =~ ^[a-zA-Z0-9./-]+=[1-9][0-9]*$ ]] || mistake "--resource is '$2'; it must be NAME=N"
      resource=$2
      ;;
    --name) job=$2 ;;
    --volume) volume=$2 ;;
    --secret) secret=$2 ;;
    --service-account) account=$2 ;;
    *) mistake "unknown option $1" ;;
  esac
  shift 2
done
[[ -n $shards ]] || mistake "--shards is missing"
[[ -n $image ]] || mistake "--image is missing"
[[ -z $tpu || -z $resource ]] || mistake "--tpu and --resource do not go together"
(($#)) || mistake "say which command to run, behind --"
publication "$@"
needs kubectl "Kubernetes' client"
selector=()
if [[ -n $tpu ]]; then
  resource=google.com/tpu=8
  accelerator='tpu-v5-lite-podslice'
  [[ $tpu == v5e ]] || accelerator='tpu-v6e-slice'
  selector+=("cloud.google.com/gke-tpu-accelerator: $accelerator" "cloud.google.com/gke-tpu-topology: 2x4")
fi
[[ -z $spot ]] || selector+=('cloud.google.com/gke-spot: "true"')

# A text as one of JSON, which is YAML; without quotes, YAML takes 2026 for a number and null for nothing.
text() {
  local word=${1//\\/\\\\}
  word=${word//\"/\\\"}
  word=${word//$'\n'/\\n}
  printf '"%s"' "${word//$'\r'/\\r}"
}

# A command as a list. In those, Kubernetes puts variables into $(NAME), and makes $ of $$.
words() {
  local word out=''
  for word; do
    # shellcheck disable=SC2016
    [[ $word != *'$('* && $word != *'$$'* ]] || word=${word//\$/\$\$}
    out+=", $(text "$word")"
  done
  printf '[%s]' "${out#, }"
}

# A Job: its name, lines of its spec, whether it computes; then its command.
manifest() {
  local name=$1 spec=$2 computes=$3 line
  shift 3
  printf '%s\n' 'apiVersion: batch/v1' 'kind: Job' 'metadata:' "  name: $(text "$name")" 'spec:'
  printf '  %s\n' "${spec//;/$'\n'  }"
  printf '%s\n' '  template:' '    spec:' '      restartPolicy: Never'
  [[ -z $account ]] || printf '%s\n' "      serviceAccountName: $(text "$account")"
  if [[ -n $computes ]] && ((${#selector[@]})); then
    printf '%s\n' '      nodeSelector:'
    for line in "${selector[@]}"; do printf '        %s\n' "$line"; done
  fi
  printf '%s\n' '      containers:' '        - name: clara' "          image: $(text "$image")" "          command: $(words "$@")"
  if [[ -n $computes && -n $resource ]]; then
    printf '%s\n' '          resources:' '            limits:' "              ${resource%=*}: ${resource#*=}"
  fi
  [[ -z $secret ]] || printf '%s\n' '          envFrom:' '            - secretRef:' "                name: $(text "$secret")"
  if [[ -n $volume ]]; then
    printf '%s\n' '          volumeMounts:' '            - name: shared' '              mountPath: /shared' '      volumes:' \
      '        - name: shared' '          persistentVolumeClaim:' "            claimName: $(text "$volume")"
  fi
}

# Submits the Job that is read from standard input; with --dry-run it is printed.
submit() {
  if [[ -n $dry_run ]]; then
    cat
    echo ---
  else
    kubectl apply -f -
  fi
}

# Waits for a Job's end.
finish() {
  local now=''
  [[ -z $dry_run ]] || return 0
  until [[ $now == *Complete* ]]; do
    now=$(kubectl get job "$1" "--output=jsonpath={.status.conditions[?(@.status==\"True\")].type} {.status.succeeded} of {.spec.completions}")
    [[ $now != *Failed* ]] || { echo "error: $name: Job $1 has failed; see kubectl logs job/$1" >&2 && exit 1; }
    echo "$name: $1: $now" >&2
    [[ $now == *Complete* ]] || sleep "${CLARA_POLL_SECONDS:-30}"
  done
}

# That a machine is taken away is no failure of a pod, and may happen any number of times.
policy="podFailurePolicy:;  rules:;    - action: Ignore;      onPodConditions: [{type: DisruptionTarget}]"
# shellcheck disable=SC2016
worker='exec "$@" --shard "$JOB_COMPLETION_INDEX" --shards '$shards
manifest "$job" "completionMode: Indexed;completions: $shards;parallelism: ${at_once:-$shards};backoffLimitPerIndex: 6;$policy" 1 \
  /bin/sh -c "$worker" sh "$@" | submit
[[ -n $wait ]] || exit 0
finish "$job"
manifest "$job-publish" "backoffLimit: 6;$policy" '' "${publish[@]}" | submit
finish "$job-publish"
