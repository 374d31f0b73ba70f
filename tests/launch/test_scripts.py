"""The launch scripts are sound shell, explain themselves, refuse mistakes in one line, and print what they would do."""

import re
import shlex
import shutil
import stat
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.launch.commands import LAUNCH, environment, launch

SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.stat().st_mode & stat.S_IXUSR)
POD = ("pod", "--zone", "z")
COMPRESS = ("python", "-m", "clara_jax.compress", "--store", "s 1", "--corpus", "c")


@pytest.fixture
def env(tmp_path):
    return environment(tmp_path)


def dry(script, *arguments, env):
    """The commands that a script would run, as lists of words."""
    result = launch(script, "--dry-run", *arguments, env=env)
    assert result.returncode == 0, result.stderr
    commands, begun = [], ""
    for line in result.stdout.splitlines():
        try:
            commands.append(shlex.split(begun + line))
            begun = ""
        except ValueError:  # a text with line ends in it is not closed yet
            begun += f"{line}\n"
    assert not begun
    return commands


def test_all_scripts_are_there():
    assert SCRIPTS == [
        "gke_shards.sh",
        "local.sh",
        "slurm.sh",
        "slurm_shards.sh",
        "tpu_create.sh",
        "tpu_run.sh",
        "tpu_setup.sh",
        "tpu_watch.sh",
    ]
    for path in LAUNCH.glob("*.sh"):
        text = path.read_text()
        assert path.name not in SCRIPTS or "\nset -euo pipefail\n" in text, path


def test_shellcheck():
    program = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install -r requirements-dev.txt brings it")
    result = subprocess.run(
        [program, "-x", *sorted(map(str, LAUNCH.glob("*.sh")))], capture_output=True, text=True, cwd=LAUNCH.parent
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_top(script, env):
    result = launch(script, "--help", env=env)
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and not result.stderr
    assert any(line.startswith(f"  launch/{script} ") for line in lines), "an example"
    assert "--dry-run" in result.stdout and "set -euo" not in result.stdout


MISTAKES = [
    ("local.sh", (), "say how many processes"),
    ("local.sh", ("two", "true"), "N is 'two'; it must be a positive whole number"),
    ("local.sh", ("0", "true"), "N is '0'; it must be a positive whole number"),
    ("local.sh", ("2",), "say which command to run"),
    ("local.sh", ("2", "--port"), "--port needs a value"),
    ("local.sh", ("2", "--grace", "-1", "true"), "--grace is '-1'; it must be a positive whole number"),
    ("local.sh", ("--colour", "2", "true"), "unknown option --colour"),
    ("tpu_create.sh", ("--zone", "z", "--type", "v5p-8"), "say the name of the TPU"),
    ("tpu_create.sh", ("pod", "--type", "v5p-8"), "--zone is missing"),
    ("tpu_create.sh", POD, "--type is missing"),
    ("tpu_create.sh", (*POD, "--type", "v5p-8", "--slices", "many"), "--slices is 'many'"),
    ("tpu_create.sh", (*POD, "--type", "tpu7x-8"), "no runtime is known for --type tpu7x-8"),
    ("tpu_create.sh", (*POD, "other"), "unexpected argument 'other'"),
    ("tpu_setup.sh", (*POD, "--ref", "v1"), "--ref goes with --clone"),
    ("tpu_run.sh", POD, "say which command to run, behind --"),
    ("tpu_run.sh", (*POD, "python"), "unexpected argument 'python'; a command comes behind --"),
    ("tpu_watch.sh", (*POD, "--", "true"), "--type is missing"),
    ("tpu_watch.sh", (*POD, "--type", "v5p-8"), "say which command to run"),
    ("tpu_watch.sh", (*POD, "--type", "v5p-8", "--retries", "x", "--", "true"), "--retries is 'x'"),
    ("slurm.sh", ("--nodes", "2"), "say which command to run"),
    ("slurm.sh", ("--nodes", "2.5", "--", "true"), "--nodes is '2.5'"),
    ("slurm.sh", ("--per", "rack", "--", "true"), "--per is 'rack'; it must be gpu or node"),
    ("slurm.sh", ("--gpu", "8", "--", "true"), "unknown option --gpu"),
    ("slurm_shards.sh", ("--", *COMPRESS), "--shards is missing"),
    ("slurm_shards.sh", ("--shards", "4"), "say which command to run, behind --"),
    ("slurm_shards.sh", ("--shards", "4", "--", "true"), "the command must name a --store"),
    (
        "slurm_shards.sh",
        ("--shards", "4", "--", "train", "--store", "s"),
        "the command must be python -m clara_jax.compress",
    ),
    ("slurm_shards.sh", ("--shards", "4", "--", *COMPRESS, "--shard", "1"), "leave --shard to this script"),
    ("slurm_shards.sh", ("--shards", "4", "--at-once", "x", "--", *COMPRESS), "--at-once is 'x'"),
    ("gke_shards.sh", ("--shards", "4", "--", *COMPRESS), "--image is missing"),
    ("gke_shards.sh", ("--shards", "4", "--image", "i", "--tpu", "v4", "--", *COMPRESS), "--tpu is 'v4'"),
    ("gke_shards.sh", ("--image", "i", "--resource", "gpu", "--", *COMPRESS), "--resource is 'gpu'"),
]


@pytest.mark.parametrize("script,arguments,message", MISTAKES)
def test_a_mistake_is_one_line(script, arguments, message, env):
    result = launch(script, *arguments, env=env)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and not result.stdout
    assert line.startswith(f"error: {script}: {message}") and line.endswith(f"see launch/{script} --help")


def test_what_is_not_installed_is_one_line(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "sed"):
        (tools / tool).symlink_to(shutil.which(tool))
    for script, arguments, program in (
        ("tpu_run.sh", (*POD, "--", "true"), "gcloud"),
        ("slurm.sh", ("--", "true"), "sbatch"),
        ("slurm_shards.sh", ("--shards", "2", "--", *COMPRESS), "sbatch"),
        ("gke_shards.sh", ("--shards", "2", "--image", "i", "--", *COMPRESS), "kubectl"),
    ):
        result = launch(script, *arguments, env={"PATH": str(tools)})
        assert result.returncode == 2 and f"there is no {program} here" in result.stderr


def test_local_prints_a_line_for_each_process(env):
    lines = dry("local.sh", "--port", "2345", "3", "python", "-c", "print('a b')", env=env)
    assert lines == [
        ["CLARA_COORDINATOR=127.0.0.1:2345", "CLARA_PROCESSES=3", f"CLARA_PROCESS={i}", "python", "-c", "print('a b')"]
        for i in range(3)
    ]


def test_create(env):
    create = ["gcloud", "compute", "tpus", "tpu-vm", "create", "pod"]
    end = ["--zone=z", "--quiet"]
    assert dry("tpu_create.sh", *POD, "--type", "v5p-128", "--spot", env=env) == [
        [*create, "--accelerator-type=v5p-128", "--version=v2-alpha-tpuv5", "--spot", *end]
    ]
    create[3] = "queued-resources"
    assert dry("tpu_create.sh", *POD, "--type", "v5litepod-16", "--queued", "--project", "p", env=env) == [
        [*create, "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=pod", *end]
        + ["--project=p"]
    ]
    slices = dry("tpu_create.sh", *POD, "--type", "v6e-8", "--slices", "4", "--reserved", "--", "--network=n", env=env)
    assert slices == [
        [*create, "--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e", "--node-count=4"]
        + ["--node-prefix=pod", "--reserved", "--network=n", *end]
    ]
    (other,) = dry("tpu_create.sh", *POD, "--type", "v4-8", "--version", "mine", env=env)
    assert "--version=mine" in other


def test_setup(env):
    archive, copy, install = dry("tpu_setup.sh", *POD, env=env)
    assert archive[:2] == ["git", "-C"] and archive[-1] == "HEAD" and "archive" in archive
    path = next(word.partition("=")[2] for word in archive if word.startswith("--output="))
    assert copy == ["gcloud", "compute", "tpus", "tpu-vm", "scp", path, "pod:clara_jax.tar.gz", "--worker=all"] + [
        "--zone=z",
        "--quiet",
    ]
    assert not Path(path).parent.exists(), "nothing stays behind"
    assert install[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--worker=all"]
    code = install[7].removeprefix("--command=")
    assert "tar xzf clara_jax.tar.gz -C clara_jax" in code and "requirements.txt 'jax[tpu]'" in code
    subprocess.run(["bash", "-n", "-c", code], check=True)
    (clone,) = dry("tpu_setup.sh", *POD, "--queued", "--clone", "https://host/x y.git", "--ref", "v1", env=env)
    assert clone[3:9] == ["queued-resources", "ssh", "pod", "--worker=all", "--node=all", "--batch-size=all"]
    code = clone[9].removeprefix("--command=")
    assert "git clone --quiet 'https://host/x y.git' clara_jax" in code and "FETCH_HEAD" in code
    subprocess.run(["bash", "-n", "-c", code], check=True)


def test_run_quotes_the_command_for_the_workers(env, tmp_path):
    (line,) = dry("tpu_run.sh", *POD, "--logs", str(tmp_path / "logs"), "--", "printf", "%s\n", "it's a $HOME", env=env)
    assert line[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--worker=all"]
    assert "--ssh-flag=-o ServerAliveInterval=30" in line and not (tmp_path / "logs").exists()
    code = next(word for word in line if word.startswith("--command=")).removeprefix("--command=")
    # What a worker does with it: its home holds what tpu_setup.sh makes.
    (tmp_path / "clara_jax").mkdir()
    (tmp_path / "clara_venv" / "bin").mkdir(parents=True)
    (tmp_path / "clara_venv" / "bin" / "activate").write_text("")
    out = subprocess.run(["bash", "-c", f"{code}; true"], env={**env, "HOME": str(tmp_path)}, capture_output=True)
    host = subprocess.run(["hostname"], capture_output=True, text=True).stdout.strip()
    assert out.stdout.decode() == f"[{host}] it's a $HOME\n" and not out.stderr


def test_stop_tells_the_runs_to_save(env):
    (line,) = dry("tpu_run.sh", *POD, "--queued", "--stop", env=env)
    assert "--node=all" in line and any("pkill -TERM" in word for word in line)


def test_watch_prints_one_round(env):
    lines = dry("tpu_watch.sh", *POD, "--type", "v5p-8", "--slices", "2", "--spot", "--", "python", "x", env=env)
    did = [line[3:5] for line in lines if line[0] == "gcloud"]
    assert did == [["queued-resources", what] for what in ("delete", "create", "scp", "ssh", "ssh")]
    assert "--node-count=2" in lines[1] and "--spot" in lines[1] and "--force" in lines[0]
    assert lines[-1][-3].endswith("&& exec python x")


def test_slurm(env):
    folder, line = dry(
        "slurm.sh", "--nodes", "2", "--gpus", "8", "--cpus", "6", "--", "python", "-m", "x", "a b", env=env
    )
    assert folder == ["mkdir", "-p", "slurm-logs"]
    assert line[0] == "sbatch" and {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"} < set(line)
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} < set(line)
    step = shlex.split(line[-1].removeprefix("--wrap="))
    assert step[:3] == ["exec", "srun", "--kill-on-bad-exit=1"] and step[-4:] == ["python", "-m", "x", "a b"]
    assert "--cpus-per-task=6" in step
    _, line = dry("slurm.sh", "--per", "node", "--gpus", "4", "--partition", "big", "--", "x", env=env)
    assert {"--ntasks-per-node=1", "--gpus-per-node=4", "--partition=big"} < set(line)


def test_slurm_shards(env):
    folder, array, publish = dry(
        "slurm_shards.sh", "--shards", "16", "--at-once", "4", "--gpus", "2", "--qos", "q", "--", *COMPRESS, env=env
    )
    assert folder == ["mkdir", "-p", "slurm-logs"]
    assert {"--array=0-15%4", "--gpus-per-node=2", "--requeue", "--ntasks=1", "--parsable", "--qos=q"} < set(array)
    task = array[-1].removeprefix("--wrap=")
    # What the shell of a task makes of it.
    said = subprocess.run(
        ["bash", "-c", 'srun() { printf "%s\n" "$@"; }; ' + task.removeprefix("exec ")],
        env={**env, "SLURM_ARRAY_TASK_ID": "3"},
        capture_output=True,
        text=True,
    )
    assert said.stdout.splitlines()[-11:] == [*COMPRESS, "--shard", "3", "--shards", "16"]
    assert "--dependency=afterok:ARRAY" in publish and not any(word.startswith("--gpus") for word in publish)
    command = shlex.split(publish[-1].removeprefix("--wrap="))
    assert command == ["exec", "python", "-m", "clara_jax.compress", "--store", "s 1", "--publish"]


WORDS = ["a\nb", "sé", "it's", "$HOME `x`", "$(HOSTNAME)", "a$$b", "~", "#", "", "a=b", "a\\b", '"', "\t", "*"]


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_any_shell_reads_a_quoted_command_back_as_it_was(shell, locale):
    """The shell of sbatch --wrap is sh, which knows no $'...'."""
    code = f'. {LAUNCH}/common.sh; line=$(quoted printf "%s\\0" "$@"); exec {shell} -c "$line"'
    said = subprocess.run(
        ["bash", "-c", code, "x", *WORDS], env={"PATH": "/usr/bin:/bin", "LC_ALL": locale}, capture_output=True
    )
    assert said.stdout.decode().split("\0")[:-1] == WORDS and not said.stderr


def test_what_stands_before_the_program_is_kept_where_it_publishes(env):
    given = ("uv", "run", "--project", "x", *COMPRESS)
    publish = dry("slurm_shards.sh", "--shards", "2", "--", *given, env=env)[-1]
    command = shlex.split(publish[-1].removeprefix("--wrap="))
    assert command == ["exec", "uv", "run", "--project", "x", *COMPRESS[:3], "--store", "s 1", "--publish"]
    publish = dry("slurm_shards.sh", "--shards", "2", "--", "clara", "compress", "--store=s", env=env)[-1]
    assert publish[-1] == "--wrap=exec clara compress --store s --publish"


def test_gke_shards_give_texts_as_they_are(env):
    names = ("--name", "2026", "--volume", "true", "--secret", "0123", "--service-account", "null")
    result = launch(
        "gke_shards.sh", "--dry-run", "--shards", "2", "--image", "i", *names, "--", *COMPRESS, *WORDS, env=env
    )
    workers, publish = list(yaml.safe_load_all(result.stdout))[:2]
    pod = workers["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (workers["metadata"]["name"], publish["metadata"]["name"]) == ("2026", "2026-publish")
    assert pod["serviceAccountName"] == "null" and container["envFrom"] == [{"secretRef": {"name": "0123"}}]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "true"}
    # What Kubernetes makes of a command: of $(NAME) the variable, of $$ a $.
    expanded = [
        re.sub(r"\$(\$|\(\w+\))", lambda m: "$" if m[1] == "$" else "host", word) for word in container["command"]
    ]
    assert expanded[4:] == [*COMPRESS, *WORDS]
    assert expanded[2] == 'exec "$@" --shard "$JOB_COMPLETION_INDEX" --shards 2'


def test_slurm_shards_waits_for_the_array(tmp_path):
    env = environment(tmp_path, sbatch=f'printf "%s\\n" "$*" >>{tmp_path}/asked; echo "77;cluster"')
    result = launch("slurm_shards.sh", "--shards", "2", "--logs", str(tmp_path), "--", *COMPRESS, env=env)
    assert result.returncode == 0, result.stderr
    assert "--dependency=afterok:77 " in (tmp_path / "asked").read_text().splitlines()[1]


def test_gke_shards(env):
    arguments = ("--shards", "16", "--at-once", "4", "--image", "host/clara:1", "--tpu", "v5e", "--spot")
    further = ("--volume", "claim", "--secret", "keys", "--service-account", "me")
    result = launch("gke_shards.sh", "--dry-run", *arguments, *further, "--", *COMPRESS, 'it\'s "x"', env=env)
    assert result.returncode == 0, result.stderr
    workers, publish = list(yaml.safe_load_all(result.stdout))[:2]
    assert workers["kind"] == publish["kind"] == "Job" and workers["apiVersion"] == "batch/v1"
    spec = workers["spec"]
    assert spec["podFailurePolicy"]["rules"][0]["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 16, 4)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true" and pod["serviceAccountName"] == "me"
    (container,) = pod["containers"]
    assert container["image"] == "host/clara:1" and container["resources"]["limits"] == {"google.com/tpu": 8}
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert container["volumeMounts"][0]["mountPath"] == "/shared"
    shell = [*container["command"]]
    assert shell[:2] == ["/bin/sh", "-c"] and shell[4:] == [*COMPRESS, 'it\'s "x"']
    said = subprocess.run(
        [*shell[:4], "printf", "%s\n", *shell[4:]],
        env={**env, "JOB_COMPLETION_INDEX": "5"},
        capture_output=True,
        text=True,
    )
    assert said.stdout.splitlines() == [*COMPRESS, 'it\'s "x"', "--shard", "5", "--shards", "16"]
    (container,) = publish["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "clara_jax.compress", "--store", "s 1", "--publish"]
    assert "resources" not in container and publish["metadata"]["name"] == "clara-shards-publish"


def test_gke_shards_submits_waits_and_publishes(tmp_path):
    kubectl = f"""echo "$1" >>{tmp_path}/asked
[[ $1 != apply ]] || cat >/dev/null
[[ $1 != get ]] || echo "$([[ $(grep -c get {tmp_path}/asked) == 1 ]] || echo Complete) 1 of 2"
"""
    env = environment(tmp_path, kubectl=kubectl) | {"CLARA_POLL_SECONDS": "0"}
    result = launch("gke_shards.sh", "--shards", "2", "--image", "i", "--", *COMPRESS, env=env)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "asked").read_text().split() == ["apply", "get", "get", "apply", "get"]
