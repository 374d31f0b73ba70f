"""Where checkpoints are looked for: folders, folders of folders, and a Hub on this machine."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from clara_jax.checkpoints import released, run
from clara_jax.checkpoints.locating import locate
from clara_jax.errors import ClaraError
from clara_jax.formats import hub

RELEASED = ("config.json", "adapters.pth", "decoder_first_last_layers.pth")
ID, COMMIT = "apple/CLaRa-tiny", "c" * 40
FILES = {f"{folder}/{name}": f"{folder} {name}".encode() for folder in ("r-16", "r-128") for name in RELEASED}
FILES |= {"README.md": b"read me", "r-16/modeling_clara.py": b"raise SystemExit", "r-16/more/x.json": b"{}"}


class FakeHub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for to download a model."""

    def do_HEAD(self):  # noqa: N802 - the name that http.server calls
        self.do_GET()

    def do_GET(self):  # noqa: N802
        path = unquote(urlsplit(self.path).path).strip("/")
        head, headers = f"{ID}/resolve/", {}
        if path.startswith(f"api/models/{ID}/tree/"):
            body = [{"type": "file", "path": name, "size": len(of), "oid": sha1(of)} for name, of in FILES.items()]
        elif path in (f"api/models/{ID}", f"api/models/{ID}/revision/main"):
            siblings = [{"rfilename": name, "size": len(of)} for name, of in FILES.items()]
            body = {"id": ID, "sha": COMMIT, "siblings": siblings}
        elif path.startswith(head) and (name := path.removeprefix(head).partition("/")[2]) in FILES:
            body = FILES[name]
            headers = {"ETag": f'"{sha1(body)}"', "X-Repo-Commit": COMMIT}
            self.server.fetched += [name] if self.command == "GET" else []
        else:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        self.answer(200, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def sha1(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub with one model, an empty cache, and a working directory where nothing lies."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        server.fetched = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield server
        server.shutdown()


def point_to(monkeypatch, address, cache):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )


def refused(path, *parts):
    with pytest.raises(ClaraError) as error:
        locate(path)
    for part in parts:
        assert part in str(error.value)
    return str(error.value)


def test_a_released_checkpoint_of_the_hub(server, capsys):
    folder, form = locate(f"{ID}/r-16")
    assert form is released and {path.name for path in folder.iterdir()} >= set(RELEASED)
    assert (folder / "adapters.pth").read_bytes() == FILES["r-16/adapters.pth"]
    # Neither programs nor other checkpoints are loaded, and how much it is stands before the download.
    assert sorted(server.fetched) == sorted(f"r-16/{name}" for name in (*RELEASED, "more/x.json"))
    assert capsys.readouterr().err.startswith(f"{ID}: loading 4 files, 0.00 GB from the Hugging Face Hub\n")
    assert locate(f"{ID}/r-16/") == (folder, released)
    assert len(server.fetched) == 4 and "loading" not in capsys.readouterr().err


def test_a_repository_says_which_of_its_folders_hold_checkpoints(server):
    for name in (ID, f"{ID}/", f"{ID}/r-4"):
        refused(name, "holds no checkpoint itself", "(r-128, r-16); name one of them, such as apple/CLaRa-tiny/r-128")
    assert not server.fetched
    refused("apple/absent", "no such directory, and no such model on the Hugging Face Hub; give a training run")


def test_out_of_reach(server, tmp_path, monkeypatch):
    folder, _ = locate(f"{ID}/r-16")
    server.shutdown()
    server.server_close()
    assert locate(f"{ID}/r-16")[0] == folder, "from the cache"
    line = refused(f"{ID}/r-128", "the Hugging Face Hub cannot be reached")
    assert f'`hf download {ID} --include "r-128/*"` fetches it' in line and "\n" not in line
    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "empty")
    refused(ID, f"`hf download {ID}` fetches it")


def test_a_mistyped_path_is_not_asked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "files_of", lambda *_: pytest.fail("asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/frist", "frist", "./a/b", "/a/b", "a b/c", "a/../b", "a" * 5000, "a/b\0"):
        refused(name, "no such directory; give a training run, one of its checkpoints")
    with pytest.raises(ClaraError, match="3 is no path"):
        locate(3)


def test_a_folder_says_which_of_its_folders_hold_checkpoints(tmp_path):
    for name in (*FILES, "runs/first/checkpoints/00-scp-00000001/clara.json", ".hidden/adapters.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    first = f"name one of them, such as {tmp_path}/r-128"
    refused(tmp_path, f"{tmp_path}: holds no checkpoint itself", "(r-128, r-16, runs/first)", first)
    for form, name in ((released, "r-16"), (run, "runs/first"), (run, "runs/first/checkpoints/00-scp-00000001")):
        assert locate(tmp_path / name) == (tmp_path / name, form)
    assert locate("smollm2-clara")[1].__name__.endswith("compact")
    (tmp_path / "empty").mkdir()
    assert locate(tmp_path / "empty") == (tmp_path / "empty", run), "whose reader says what is missing"
