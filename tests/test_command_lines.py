"""All commands speak one dialect: an option has one name, one help text and one short form; old names still work."""

import argparse
import importlib
import sys

import pytest

from clara_jax import arguments, command, configs
from clara_jax.data import __main__ as data_command
from clara_jax.errors import ClaraError, ClaraWarning
from tests.locations import ROOT

COMMANDS = ("ask", "compress", "convert", "evaluate", "mcp", "serve", "train", "aot.__main__")
BENCHMARKS = tuple(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if "command.run(main)" in path.read_text(encoding="utf-8")
)


def parsers(parser):
    """Return a parser and those of its subcommands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [one for sub in action.choices.values() for one in parsers(sub)]
    return found


def all_parsers(monkeypatch):
    names = [*(f"clara_jax.{name}" for name in COMMANDS), *BENCHMARKS]
    found = [one for name in names for one in parsers(importlib.import_module(name).parser())]
    made = []
    monkeypatch.setattr(
        command, "make_parser", lambda *given, make=command.make_parser: made.append(make(*given)) or made[-1]
    )
    from clara_jax import evaluate, synthesize

    mains = (data_command.main, synthesize.main, evaluate.main)
    lines = (
        *(["data", name] for name in data_command.COMMANDS),  # each adds its options when it is called
        ["synthesize"],
        ["synthesize", "answers"],
        ["synthesize", "statistics"],
        ["synthesize", "review"],
    )
    lines += (["evaluate", "compare"],)
    for line in lines:
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises((ClaraError, SystemExit)):
            dict(zip(("data", "synthesize", "evaluate"), mains, strict=True))[line[0]]()
    return found + [one for parser in made for one in parsers(parser)]


def test_an_option_that_several_commands_have_means_the_same(monkeypatch):
    found = all_parsers(monkeypatch)
    assert len(found) >= 38 and len(BENCHMARKS) >= 18
    for parser in found:
        for action in parser._actions:
            name = action.option_strings[-1] if action.option_strings else None
            if name in command._OPTIONS and action.help != argparse.SUPPRESS:  # which old names have
                shared = command._OPTIONS[name]
                assert action.help.startswith(shared["help"]), (parser.prog, name)
                assert action.type in (shared.get("type"), None) or "type" not in shared, (parser.prog, name)


def test_every_command_makes_its_parser_here():
    made = [
        path.relative_to(ROOT)
        for folder in ("clara_jax", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if "ArgumentParser(" in path.read_text(encoding="utf-8") and path.name != "command.py"
    ]
    assert not made


def test_a_benchmark_says_how_it_is_started():
    for name in BENCHMARKS:
        assert importlib.import_module(name).parser().prog == f"python -m {name.removesuffix('.__main__')}"


def test_a_mistake_is_one_line():
    parser = command.make_parser("ask", "Asks.")
    command.add_option(parser, "--k", "default: 5")
    with pytest.raises(ClaraError, match="^-k/--k: 'x' is no whole number; see python -m clara_jax.ask --help$"):
        parser.parse_args(["--k", "x"])
    assert parser.parse_args(["-k", "3"]).k == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--documnts", "x"], "unknown option --documnts; did you mean --documents?; see"),
        (["--precison=float32"], "unknown option --precison; did you mean --precision?; see"),
        (["--zzz"], "unknown option --zzz; see"),
        (["one", "two"], "unexpected argument 'two'; see"),
        (["--how", "memroy"], "--how: 'memroy' must be one of memory, words, both; did you mean memory?; see"),
        (["--top-p", "half"], "--top-p: 'half' is no number; see"),
        (["--store"], "--store: needs a value after it; see"),
        (["--json=yes"], "--json: takes no value, and 'yes' is given; see"),
    ],
)
def test_a_mistake_is_told_in_our_words(given, said):
    from clara_jax import ask

    with pytest.raises(ClaraError) as caught:
        ask.parser().parse_args(given)
    assert str(caught.value) == f"{said} python -m clara_jax.ask --help"


def test_a_mistake_in_a_subcommand_is_told_with_its_options():
    parser = command.make_parser("data", "Data.")
    one = parser.add_subparsers().add_parser("corpus")
    command.add_option(one, "--output", required=True)
    with pytest.raises(ClaraError, match="^--output: is missing; see python -m clara_jax.data corpus --help$"):
        parser.parse_args(["corpus"])
    with pytest.raises(ClaraError, match="^unknown option --outptu; did you mean --output?"):
        parser.parse_args(["corpus", "--output", "x", "--outptu", "y"])


def test_a_missing_configuration_is_told_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "smoke.py").touch()

    def parse(path):
        return arguments.parse(command.make_parser("train", "Trains."), ["train", "--config", path])

    for given, said in (
        ("configs/smok.py", "--config: configs/smok.py: there is no such file; did you mean configs/smoke.py?"),
        ("config/smoke.py:ci", "--config: config/smoke.py: there is no such file; did you mean configs/smoke.py?"),
        ("zzz.py", f"--config: zzz.py: there is no such file; {configs.choice()}"),
    ):
        with pytest.raises(ClaraError) as caught:
            parse(given)
        assert str(caught.value) == said


def test_our_warnings_are_one_line_in_a_command(monkeypatch):
    warning = command._format_warning(ClaraWarning("a\nb"), ClaraWarning, "api.py", 7)
    assert warning == "warning: a b\n"
    assert "api.py:7" in command._format_warning(UserWarning("x"), UserWarning, "api.py", 7)


def test_an_old_name_works_and_warns(capsys):
    parser = command.make_parser("evaluate", "Evaluates.")
    command.add_option(parser, "--compress-rate", nargs="+", default=[])
    command.add_renamed_option(parser, "--rates", "--compress-rate", nargs="+", type=int)
    assert parser.parse_args([]).compress_rate == []
    assert parser.parse_args(["--compress-rate", "4"]).compress_rate == [4] and not capsys.readouterr().err
    assert parser.parse_args(["--rates", "4", "8"]).compress_rate == [4, 8]
    expected = "warning: --rates is now --compress-rate; the old name will go in the next version\n"
    assert capsys.readouterr().err == expected and "--rates" not in parser.format_help()


def test_a_configuration_stands_beside_other_options(capsys):
    def parse(*given):
        parser = command.make_parser("train", "Trains.")
        command.add_option(parser, "--workdir")
        return arguments.parse(parser, ["train", *given])

    path = str(ROOT / "configs" / "smoke.py")
    for given in (["--config", path, "--config.seed=7"], ["--config.seed", "7", f"--config={path}"]):
        found = parse("--workdir", "there", *given)
        assert (found.config.seed, found.workdir) == (7, "there")
    found = parse("--config", path, "--config.synthetic.hard_share=0.75", "--config.synthetic.world.attribute_values=4")
    assert found.config.synthetic.records.hard_share == 0.75 and found.config.synthetic.world.attribute_values == 4
    assert "config.synthetic.hard_share is now config.synthetic.records.hard_share" in capsys.readouterr().err
    assert parse("--workdir=there").config is None
    for given, message in (
        (["--workdri=x"], "unknown option --workdri; did you mean --workdir"),
        (["--config", path, "more"], "unexpected argument 'more'"),
        (["--config", path, "--config.sede=1"], "no field sede; did you mean seed"),
    ):
        with pytest.raises(ClaraError, match=message):
            parse(*given)
