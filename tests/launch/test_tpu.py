"""The TPU scripts against a gcloud that only plays a part: what they ask for, in which order, and when they end."""

import pytest

from tests.launch.commands import environment, launch

# Writes down what it is asked for. "describe" takes the next line of the file "states" (the last one stays), "ssh" runs
# the next line of "runs" for a command that is not setup. "delete" and "create" succeed.
GCLOUD = """
here=$(dirname "$0")
next() {
  line=$(head -n 1 "$here/$1")
  [[ $(wc -l <"$here/$1") -le 1 ]] || sed -i 1d "$here/$1"
  printf '%s' "$line"
}
command=$4
case $command in
  describe) state=$(next states); [[ $state != none ]] || exit 1; echo "$state"; exit 0 ;;
  ssh) [[ $* != *"pip install"* ]] && command=run || command=setup ;;
esac
echo "$command" >>"$here/calls"
[[ $command != run ]] || eval "$(next runs)"
"""
OPTIONS = ("pod", "--zone", "z", "--type", "v5p-8", "--spot", "--interval", "1")


@pytest.fixture
def play(tmp_path):
    env = environment(tmp_path, gcloud=GCLOUD) | {"CLARA_POLL_SECONDS": "0.1"}
    here = tmp_path / "bin"

    def play(script, *arguments, states, runs=("exit 0",)):
        (here / "states").write_text("\n".join(states) + "\n")
        (here / "runs").write_text("\n".join(runs) + "\n")
        result = launch(script, *arguments, env=env)
        calls = (here / "calls").read_text().split() if (here / "calls").exists() else []
        return result, calls

    return play


def test_create_waits_until_the_resource_is_there(play):
    waiting = ("none", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    result, calls = play("tpu_create.sh", "pod", "--zone", "z", "--type", "v5p-8", "--queued", states=waiting)
    assert result.returncode == 0 and calls == ["create"]
    assert "pod is PROVISIONING" in result.stderr and result.stderr.rstrip().endswith("pod is ACTIVE")


def test_create_says_when_it_will_never_be_there(play):
    result, _ = play("tpu_create.sh", "pod", "--zone", "z", "--type", "v5p-8", "--queued", states=("FAILED",))
    assert result.returncode == 1 and "error: tpu_create.sh: pod is FAILED" in result.stderr


def test_run_collects_a_file_for_each_worker(play, tmp_path):
    logs = tmp_path / "logs"
    says = 'echo "[w-0] one"; echo "[w-1] two"; echo "[w-0] three"; echo "[[odd" >&2; exit 3'
    result, _ = play(
        "tpu_run.sh", "pod", "--zone", "z", "--logs", str(logs), "--", "x", states=("READY",), runs=(says,)
    )
    assert result.returncode == 3 and "[w-1] two" in result.stdout
    assert (logs / "w-0.log").read_text() == "[w-0] one\n[w-0] three\n"
    assert (logs / "w-1.log").read_text() == "[w-1] two\n"


def test_watch_sets_up_what_is_there_and_runs(play):
    result, calls = play("tpu_watch.sh", *OPTIONS, "--", "x", states=("ACTIVE",))
    assert result.returncode == 0 and calls == ["scp", "setup", "run"]


def test_watch_creates_what_is_not_there(play):
    result, calls = play("tpu_watch.sh", *OPTIONS, "--", "x", states=("none", "ACTIVE"))
    assert result.returncode == 0 and calls == ["create", "scp", "setup", "run"]


def test_watch_runs_again_after_a_preemption(play):
    """The first run's connection hangs when its machines are gone."""
    states = ("ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE")
    result, calls = play("tpu_watch.sh", *OPTIONS, "--", "x", states=states, runs=("sleep 50", "exit 0"))
    assert result.returncode == 0, result.stderr
    assert calls == ["scp", "setup", "run", "delete", "create", "scp", "setup", "run"]


def test_watch_does_not_take_a_save_before_preemption_for_the_end(play):
    """Told of its preemption, a run saves and ends with 0."""
    states = ("ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED", "ACTIVE")
    result, calls = play("tpu_watch.sh", *OPTIONS, "--", "x", states=states)
    assert result.returncode == 0 and calls.count("run") == 2 and calls.count("delete") == 1


def test_watch_gives_up_a_command_that_fails_by_itself(play, tmp_path):
    logs = tmp_path / "logs"
    result, calls = play(
        "tpu_watch.sh", *OPTIONS, "--retries", "1", "--logs", str(logs), "--", "x", states=("ACTIVE",), runs=("exit 5",)
    )
    assert result.returncode == 5 and calls == ["scp", "setup", "run", "run"]
    assert "exit code 5, and pod is there (2 of 2)" in result.stderr
    assert sorted(path.name for path in logs.iterdir()) == ["1", "2"]


def test_watch_keeps_a_run_when_gcloud_cannot_ask(play):
    states, runs = ("ACTIVE", "none", "ACTIVE"), ("sleep 5; exit 0",)
    result, calls = play("tpu_watch.sh", *OPTIONS, "--", "x", states=states, runs=runs)
    assert result.returncode == 0 and calls.count("run") == 1
