"""The command `ppdet-lite` and the names of recipes."""

import subprocess
import sys
from pathlib import Path

import pytest

from ppdet_lite import __main__ as command_line
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.config.recipes import recipe_names, recipes_folder
from ppdet_lite.core.errors import UserError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run `ppdet-lite` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["ppdet-lite", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return ended.value.code


@pytest.mark.parametrize("name", command_line.command_names())
def test_help_of_each_command(monkeypatch, capsys, name: str) -> None:
    assert run(monkeypatch, name, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: ppdet-lite {name} ") and f"ppdet-lite {name}" in " ".join(shown.split())


def test_help_lists_the_commands_with_their_purpose(monkeypatch, capsys) -> None:
    assert run(monkeypatch) == 0 == run(monkeypatch, "--help")
    shown = capsys.readouterr().out
    assert "  train              Train a detector\n" in shown
    assert all(f"\n  {name} " in shown for name in command_line.command_names())


def test_the_version(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["ppdet-lite", "--version"])
    command_line.main()
    assert capsys.readouterr().out == "ppdet-lite 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: trian: unknown command; did you mean train?"),
        (["x"], "error: x: unknown command; `ppdet-lite --help` lists the commands"),
    ],
)
def test_an_unknown_command_is_one_line(monkeypatch, capsys, arguments: list[str], message: str) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_an_unknown_option_shows_the_help(monkeypatch) -> None:
    assert run(monkeypatch, "--nonsense") == 2


def test_errors_in_arguments_name_the_command(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "train") == 2
    assert "ppdet-lite train: error: give one of -c CONFIG, --data PATH and --replay DIR" in capsys.readouterr().err


def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_path = load_config(recipes_folder() / "gn/faster_rcnn_r50_fpn_gn_2x_coco.yml")
    for name in ("gn/faster_rcnn_r50_fpn_gn_2x_coco", "gn/faster_rcnn_r50_fpn_gn_2x_coco.yml"):
        assert load_config(name).dump() == by_path.dump()


def test_a_config_inherits_a_recipe_by_its_name(tmp_path) -> None:
    mine = tmp_path / "mine.yml"
    mine.write_text("_base_: quickstart/shapes_r18_fpn\nmodel: {backbone: {depth: 34}}\n")
    assert load_config(mine)["model"]["backbone"]["depth"] == 34


def test_a_file_takes_precedence_over_a_recipe(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "quickstart/shapes_r18_fpn.yml"
    mine.parent.mkdir()
    mine.write_text(f"_base_: {recipes_folder()}/quickstart/shapes_r18_fpn.yml\nmodel: {{backbone: {{depth: 34}}}}\n")
    assert load_config("quickstart/shapes_r18_fpn.yml")["model"]["backbone"]["depth"] == 34


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("dcn/faster_rcnn_dcn_r50_fpn_1x_cocoo", "dcn/faster_rcnn_dcn_r50_fpn_1x_coco"),
        ("shapes_r18_fpn_mimic.yml", "quickstart/shapes_r18_fpn_mimic"),  # without its folder
    ],
)
def test_the_nearest_recipe_is_suggested(name: str, nearest: str) -> None:
    assert nearest in recipe_names()
    with pytest.raises(UserError, match=f"no such file; did you mean the recipe {nearest}\\?$"):
        load_config(name)


def test_quickstart_runs_its_steps_and_ends_at_the_first_that_fails(monkeypatch, capsys) -> None:
    steps = []

    def fake(command: list, **_: object) -> subprocess.CompletedProcess:
        steps.append([str(word) for word in command])
        return subprocess.CompletedProcess(command, 3 if "export-model" in command else 0)

    monkeypatch.setattr(subprocess, "run", fake)
    assert run(monkeypatch, "quickstart", "--output", "o") == 3
    assert [step[3] for step in steps] == ["make-shapes", "train", "export-model"]
    assert steps[1][3:] == ["train", "-c", "quickstart/shapes_r18_fpn", "-o", "output=o", "--resume", "auto", "--eval"]
    assert f"$ ppdet-lite {' '.join(steps[1][3:])}\n" in capsys.readouterr().out


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "ppdet_lite", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("ppdet-lite ") and done.returncode == 0
    assert Path(command_line.__file__).name == "__main__.py"
