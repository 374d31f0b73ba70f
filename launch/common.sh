# What the launch scripts share; they source it.
# shellcheck shell=bash

name=${0##*/}
dry_run=

# Prints the comment at the top of the script, without its first line.
usage() {
  sed -n '2,/^[^#]/{/^#/!d; s/^# \{0,1\}//; p;}' "$0"
  exit 0
}

# One line, and exit code 2: the command line is wrong.
mistake() {
  echo "error: $name: $*; see launch/$name --help" >&2
  exit 2
}

# An option and its value are the first of what it is given.
value() {
  (($# >= 2)) || mistake "$1 needs a value"
}

positive() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || mistake "$1 is '$2'; it must be a positive whole number"
}

needs() {
  [[ -n $dry_run ]] || command -v "$1" >/dev/null || mistake "there is no $1 here; install $2"
}

# A command as one line that any shell reads back as it was: sbatch and ssh give it to others than bash, which do not know
# the $'...' of printf %q.
quoted() {
  local word line='' quote="'\\''"
  for word; do
    [[ $word =~ ^[a-zA-Z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/$quote}'"
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# Says the command and runs it; with --dry-run it is only said.
run() {
  if [[ -n $dry_run ]]; then
    quoted "$@"
    echo
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# Sets `publish` to the command that publishes what workers of the given one compress: the same program, with all that
# stands before it, and the same store.
# shellcheck disable=SC2034 # the scripts read it
publication() {
  publish=()
  local store='' named=''
  while (($#)); do
    case $1 in
      --store) store=${2-} ;;
      --store=*) store=${1#*=} ;;
      --shard | --shard=* | --shards | --shards=* | --publish) mistake "leave $1 to this script" ;;
    esac
    [[ -n $named ]] || publish+=("$1")
    [[ ! $1 =~ (^|[./])compress$ ]] || named=1
    shift
  done
  [[ -n $store ]] || mistake "the command must name a --store"
  [[ -n $named ]] || mistake "the command must be python -m clara_jax.compress, or clara compress"
  publish+=(--store "$store" --publish)
}
