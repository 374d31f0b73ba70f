#!/usr/bin/env bash
# Sets up all workers of a TPU: the checkout in ~/clara_jax, Python and the packages in ~/clara_venv. May be repeated.
#
#   launch/tpu_setup.sh NAME --zone ZONE [--queued] [--clone URL [--ref REF]] [--project PROJECT] [--dry-run]
#
#   --queued       NAME is a queued resource; all its slices are set up
#   --clone URL    clone there instead of copying this checkout's last commit
#   --ref REF      branch, tag or commit of the clone; default: its main branch
#   --dry-run      print the commands, run nothing
set -euo pipefail
# shellcheck source=launch/tpu_common.sh
source "${BASH_SOURCE[0]%/*}/tpu_common.sh"

clone='' ref=''
while (($#)); do
  case $1 in
    --clone | --ref)
      value "$@"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    *)
      take "$@"
      shift "$taken"
      ;;
  esac
done
[[ -z $ref || -n $clone ]] || mistake "--ref goes with --clone"
check
mapfile -t all < <(everywhere)

if [[ -n $clone ]]; then
  url=$(quoted "$clone")
  code="[ -d clara_jax ] || git clone --quiet $url clara_jax; git -C clara_jax fetch --quiet --tags $url $(quoted "${ref:-HEAD}")"
  code+=" && git -C clara_jax checkout --quiet --detach FETCH_HEAD"
else
  root=$(git -C "$here" rev-parse --show-toplevel) || mistake "this is no git checkout; use --clone URL"
  [[ -z $(git -C "$root" status --porcelain) ]] || echo "$name: what is not committed is not copied" >&2
  archive=$(mktemp -d)/clara_jax.tar.gz
  trap 'rm -rf "${archive%/*}"' EXIT
  run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  tpus scp "$archive" "$tpu:clara_jax.tar.gz" "${all[@]}"
  code="mkdir -p clara_jax && tar xzf clara_jax.tar.gz -C clara_jax"
fi

# The images bring Python 3.10; uv gets a newer one.
python="clara_venv/bin/python"
packages="python3 -m pip install --quiet --user uv && uv=~/.local/bin/uv"
packages+=" && { [ -x $python ] || \$uv venv --quiet --python 3.12 clara_venv; }"
packages+=" && \$uv pip install --quiet --python $python -r clara_jax/requirements.txt 'jax[tpu]'"
tpus ssh "$tpu" "${all[@]}" "--command=set -e; cd ~; $code; $packages; $python -c 'import jax, libtpu; print(jax.__version__)'"
