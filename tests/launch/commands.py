"""How the tests call the launch scripts: never with the gcloud, kubectl or sbatch of the machine they run on."""

import os
import subprocess
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"


def environment(directory: Path, **programs: str) -> dict[str, str]:
    """An environment where gcloud, kubectl and sbatch are these shell programs; by default ones that fail the test."""
    bin_directory = directory / "bin"
    bin_directory.mkdir(exist_ok=True)
    for program in ("gcloud", "kubectl", "sbatch", "srun"):
        path = bin_directory / program
        path.write_text("#!/usr/bin/env bash\n" + programs.get(program, f"echo {program} must not run; exit 99\n"))
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}"}


def launch(script: str, *arguments: str, env: dict[str, str], timeout: float = 60) -> subprocess.CompletedProcess:
    command = [str(LAUNCH / script), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, cwd=LAUNCH.parent)
