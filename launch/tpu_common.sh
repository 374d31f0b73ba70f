# What the TPU scripts share: how a TPU is named, and the commands for one slice or for all slices of a queued resource.
# shellcheck shell=bash disable=SC2034 # the scripts read what is set here
# shellcheck source=launch/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"

here=${BASH_SOURCE[0]%/*}
tpu='' zone='' project='' queued=''

# Takes the option or name at the front that all TPU scripts know; the caller shifts by $taken.
take() {
  taken=1
  case $1 in
    -h | --help) usage ;;
    --dry-run) dry_run=1 ;;
    --queued) queued=1 ;;
    --zone | --project)
      value "$@"
      printf -v "${1#--}" '%s' "$2"
      taken=2
      ;;
    -*) mistake "unknown option $1" ;;
    *)
      [[ -z $tpu ]] || mistake "unexpected argument '$1'; a command comes behind --"
      tpu=$1
      ;;
  esac
}

# Checks what `take` has taken, and sets `where`, the end of every command for this TPU.
check() {
  [[ -n $tpu ]] || mistake "say the name of the TPU"
  [[ -n $zone ]] || mistake "--zone is missing"
  needs gcloud "the Google Cloud CLI"
  where=("--zone=$zone" --quiet)
  [[ -z $project ]] || where+=("--project=$project")
}

# gcloud for what NAME is, with a command of gcloud's: describe, delete, ssh, scp.
tpus() {
  if [[ -n $queued ]]; then
    run gcloud compute tpus queued-resources "$@" "${where[@]}"
  else
    run gcloud compute tpus tpu-vm "$@" "${where[@]}"
  fi
}

# All workers, of all slices, at once.
everywhere() {
  echo --worker=all
  [[ -z $queued ]] || printf '%s\n' --node=all --batch-size=all
}

# READY (ACTIVE for a queued resource) where it can be used; empty where there is none.
state() {
  local field=state
  [[ -z $queued ]] || field=state.state
  tpus describe "$tpu" "--format=value($field)" 2>/dev/null || true
}

usable() { [[ $1 == READY || $1 == ACTIVE ]]; }
