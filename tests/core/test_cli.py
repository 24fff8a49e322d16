"""The arguments and exit codes that the tools share."""

import subprocess
import sys

import pytest

from ppdet_lite.core.cli import config_parser, overrides, run
from ppdet_lite.core.errors import UserError


def raising(error):
    def main():
        raise error

    return main


def test_a_user_error_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        run(raising(UserError("x.yml:1: lr: expected a number, got 'a' (text)")))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == "error: x.yml:1: lr: expected a number, got 'a' (text)\n"
    assert captured.out == ""


def test_ctrl_c_is_quiet_and_code_130(capsys):
    with pytest.raises(SystemExit) as caught:
        run(raising(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_a_missing_package_is_reported_in_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        run(raising(ModuleNotFoundError("No module named 'paddle'", name="paddle")))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "has no paddle: pip install paddlepaddle==3.3.1, or" in message and message.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        run(raising(ModuleNotFoundError("No module named 'cv2'", name="cv2")))
    assert "has no cv2: pip install opencv-python-headless, or" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):  # our own bug
        run(raising(ModuleNotFoundError("No module named 'ppdet_lite.x'", name="ppdet_lite.x")))


@pytest.mark.parametrize(
    ("library", "remedy"),
    [("libgomp.so.1", "; install it (Debian, Ubuntu: apt-get install libgomp1)\n"), ("libx.so.2", "; install it\n")],
)
def test_a_missing_system_library_is_reported_in_one_line(capsys, library, remedy):
    with pytest.raises(SystemExit) as caught:
        run(raising(ImportError(f"{library}: cannot open shared object file: No such file or directory")))
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: the system library {library} is missing{remedy}"
    with pytest.raises(ImportError):  # our own bug
        run(raising(ImportError("cannot import name 'x' from 'ppdet_lite'")))


def test_other_errors_propagate():
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


def test_success_returns():
    assert run(lambda: None) is None


def test_all_overrides_count_in_order():
    parser = config_parser("A tool.")
    args = parser.parse_args(["-o", "a=1", "b=-2", "-c", "x.yml", "--override", "c=3", "-o", "d=4"])
    assert args.config == "x.yml"
    assert overrides(args) == ["a=1", "b=-2", "c=3", "d=4"]
    assert args.print_config is False
    assert overrides(parser.parse_args(["-c", "y.yml", "--print-config"])) == []  # nothing is left from before
    assert parser.parse_args(["-c", "y.yml", "--print-config"]).print_config is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: -c/--config"),
        (["-c", "x.yml", "-o"], "argument -o/--override: expected at least one argument"),
        (["-c", "x.yml", "--overide", "a=1"], "unrecognized arguments: --overide a=1"),
        (["--conf", "x.yml"], "the following arguments are required: -c/--config"),
    ],
)
def test_usage_errors_are_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        config_parser("A tool.").parse_args(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "main, code",
    [
        ("print('a' * 100000)", 141),  # more than a pipe holds
        ("log.configure().info('a' * 100000); log.configure().info('b'); print('c')", 0),  # a run goes on
    ],
)
def test_a_closed_stdout_ends_the_program_quietly(main, code):
    """As `| head` does: without a traceback for each line."""
    program = f"from ppdet_lite.core import cli, log\ndef main(): {main}\ncli.run(main)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", code)
