"""A served model ended under load, and asked for long: ``python -m pytest -n 0 -m drill tests/drills/test_server.py``.

What ends in a process for itself is here; `tests/serving/test_server.py` has the same without a model, and fast.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.tiny import write_base

CLIENTS, DRAIN, SLACK = 48, 5, 15


@contextlib.contextmanager
def started(base, log, *options):
    command = [sys.executable, "-m", "clara_jax.serve", "--text", str(base), "--port", "0", "--rows", "16"]
    with (
        open(log, "w") as errors,
        subprocess.Popen(
            [*command, "--drain-seconds", str(DRAIN), *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        ) as process,
    ):
        try:
            for line in process.stdout:
                if line.startswith("listening at "):
                    break
            else:
                pytest.fail(log.read_text())
            yield process, line.split()[-1]
        finally:
            process.kill()


def ask(url, number, found):
    """What a client gets: "answered", "told", or what went wrong."""
    body = {"messages": [{"role": "user", "content": f"Who is number {number}?"}], "max_tokens": 100, "seed": number}
    body |= {"temperature": 1.0, "stream": number % 2 == 0}
    try:
        response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
        last = [line for line in response.text.split("\n\n") if line][-2:]
        if response.status_code == 503:
            found.append("told")
        elif body["stream"] and last[-1:] == ["data: [DONE]"]:
            found.append("told" if "the server is stopping" in last[0] else "answered")
        elif response.status_code == 200 and response.json()["choices"]:
            found.append("answered")
        else:
            found.append(f"{response.status_code} {response.text[-200:]}")
    except (httpx.HTTPError, json.JSONDecodeError, IndexError) as error:
        found.append(repr(error))


@pytest.mark.drill
def test_ended_under_load(tmp_path, monkeypatch):
    """At random moments, most while programs are compiled for the first time."""
    base, rng, tries, sums = write_base(tmp_path / "base"), random.Random(0), 6, {"answered": 0, "told": 0}
    for attempt in range(tries):
        log, found = tmp_path / f"log-{attempt}", []
        with started(base, log, "--no-warm-up", "--no-compile-cache") as (process, url):
            threads = [threading.Thread(target=ask, args=(url, number, found)) for number in range(CLIENTS)]
            for thread in threads:
                thread.start()
            while httpx.get(f"{url}/health", timeout=60).json()["inside"] < CLIENTS - len(found):
                time.sleep(0.05)
            time.sleep(rng.choice([0, rng.uniform(0, 4), rng.uniform(0, 20)]))
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            code = process.wait(DRAIN + SLACK)
            took = time.monotonic() - began
            for thread in threads:
                thread.join(30)
        assert code == 0 and took < DRAIN + SLACK
        wrong = [one for one in found if one not in sums]
        # Whoever came after the signal finds nobody at the door.
        assert len(found) == CLIENTS and not wrong, wrong[:3]
        assert "terminate called" not in log.read_text() and "Traceback" not in log.read_text()
        for one in found:
            sums[one] += 1
        print(f"\nended after {took:.1f} s with {code}: {sums} of {CLIENTS * (attempt + 1)}")


def resident(process):
    """MiB of memory that a process has."""
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.drill
def test_memory_stays_flat(tmp_path):
    """Rounds of requests of the same kinds: what was taken in the first ones is enough for the others."""
    base, rounds, figures = write_base(tmp_path / "base"), 3, []
    with started(base, tmp_path / "log") as (process, url):
        for turn in range(rounds):
            for start in range(0, 512, 32):
                found = []
                threads = [threading.Thread(target=ask, args=(url, start + n, found)) for n in range(32)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert found.count("answered") == 32, found[:3]
            figures.append(resident(process))
            print(f"\n{512 * (turn + 1)} chats: {figures[-1]:.0f} MiB")
    assert figures[-1] < figures[1] + 32
