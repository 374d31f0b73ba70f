"""Nothing skips silently: the summary of a run lists what was not checked."""

from types import SimpleNamespace

from tests.conftest import pytest_terminal_summary


class Reporter(SimpleNamespace):
    def section(self, title):
        self.lines.append(f"= {title} =")

    def write_line(self, line):
        self.lines.append(line)


def lines(chosen, *skipped):
    reports = [SimpleNamespace(nodeid=node, longrepr=("file.py", 3, f"Skipped: {why}")) for node, why in skipped]
    reporter = Reporter(stats={"skipped": reports}, lines=[])
    ini = ["-m", "not slow"]
    config = SimpleNamespace(option=SimpleNamespace(markexpr=chosen), getini=lambda name: ini)
    pytest_terminal_summary(reporter, config)
    return reporter.lines


def test_what_was_not_checked_is_listed():
    found = lines(
        "not slow", ("tests/b.py::c[x]", "no torch"), ("tests/a.py", "no files"), ("tests/b.py::d", "no torch")
    )
    assert found[:3] == ["= not checked =", "tests/a.py, 1 skipped: no files", "tests/b.py, 2 skipped: no torch"]
    assert len(found) == 4 and "-m slow" in found[3]
    assert lines("slow", ("tests/a.py::b", "no files")) == ["= not checked =", "tests/a.py, 1 skipped: no files"]
    assert lines("slow") == []
