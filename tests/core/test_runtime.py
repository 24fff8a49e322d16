"""The settings that `import ppdet_lite` makes in the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppdet_lite.core import runtime
from ppdet_lite.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
OURS = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "GLIBC_TUNABLES", "PPDET_LITE_RUNTIME", *runtime.MALLOC_VARIABLES)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Twelve cores of AMD, glibc, paddle not yet imported; collects the calls of mallopt instead of making them."""
    calls = []

    class Library:
        @staticmethod
        def mallopt(number, value):
            calls.append((number, value))
            return 1

    monkeypatch.setattr(runtime, "_applied", runtime.applied_settings())
    monkeypatch.setattr(runtime, "usable_cores", lambda: 12)
    monkeypatch.setattr(runtime, "cpu_info", lambda: {"vendor_id": "AuthenticAMD"})
    monkeypatch.setattr(runtime, "_is_glibc", lambda: True)
    monkeypatch.setattr(runtime, "_paddle_is_imported", lambda: False)
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: Library)
    return calls


MALLOPT = [(-3, 1 << 30), (-1, 2**31 - 1), (-2, 64 << 20)]


def test_everything_is_set_on_a_bare_machine(machine):
    environ = {"HOME": "/home/me"}
    settings = runtime.prepare(environ)
    assert environ == {"HOME": "/home/me", "OMP_NUM_THREADS": "12", "MKL_DEBUG_CPU_TYPE": "5"}
    assert machine == MALLOPT
    assert runtime.applied_settings() == settings
    assert [str(setting) for setting in settings] == [
        "OMP_NUM_THREADS=12 (usable cores: 12)",
        "MKL_DEBUG_CPU_TYPE=5 (an AMD processor)",
        "M_MMAP_THRESHOLD=1073741824 (fewer page faults)",
        "M_TRIM_THRESHOLD=2147483647 (fewer page faults)",
        "M_TOP_PAD=67108864 (fewer page faults)",
    ]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"])
def test_settings_of_the_user_are_kept(machine, name):
    environ = {"OMP_NUM_THREADS": "3", "MKL_DEBUG_CPU_TYPE": "4", name: "1000"}
    before = dict(environ)
    settings = runtime.prepare(environ)
    assert environ == before and machine == []
    assert [str(setting) for setting in settings] == [
        "OMP_NUM_THREADS left unchanged (the user has set 3)",
        "MKL_DEBUG_CPU_TYPE left unchanged (the user has set 4)",
        f"malloc left unchanged (the user has set {name})",
    ]


def test_each_malloc_variable_of_the_user_counts(machine):
    environ = {"OMP_NUM_THREADS": "1"}
    runtime.prepare(environ)
    assert environ == {"OMP_NUM_THREADS": "1", "MKL_DEBUG_CPU_TYPE": "5"} and machine == MALLOPT
    machine.clear()
    runtime.prepare({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"})
    assert machine == []
    runtime.prepare({"GLIBC_TUNABLES": "glibc.rtld.nns=8"})
    assert machine == MALLOPT


@pytest.mark.parametrize(
    ("words", "threads", "mkl", "malloc"),
    [
        ("off", 0, 0, 0),
        ("OFF", 0, 0, 0),
        ("threads", 1, 0, 0),
        ("mkl", 0, 1, 0),
        ("malloc", 0, 0, 1),
        (" malloc , threads", 1, 0, 1),
        ("threads,malloc,mkl", 1, 1, 1),
        ("", 1, 1, 1),
    ],
)
def test_the_switch(machine, words, threads, mkl, malloc):
    environ = {"PPDET_LITE_RUNTIME": words}
    settings = runtime.prepare(environ)
    assert ("OMP_NUM_THREADS" in environ, "MKL_DEBUG_CPU_TYPE" in environ) == (bool(threads), bool(mkl))
    assert machine == (MALLOPT if malloc else [])
    assert len(settings) == threads + mkl + 3 * malloc


@pytest.mark.parametrize("words", ["thread", "threads,on", "off,malloc"])
def test_an_unknown_word_is_refused(machine, words):
    environ = {"PPDET_LITE_RUNTIME": words}
    with pytest.raises(UserError, match=r"unknown value '(thread|on|off)'; use off, or any of threads,malloc,mkl"):
        runtime.prepare(environ)
    assert environ == {"PPDET_LITE_RUNTIME": words} and machine == []


def test_processes_of_a_launch_share_the_cores():
    for launch, threads in [
        ({"PADDLE_TRAINERS_NUM": "4"}, "3"),
        ({"PADDLE_TRAINERS_NUM": "8", "PADDLE_LOCAL_SIZE": "4"}, "3"),  # two machines
        ({"PADDLE_TRAINERS_NUM": "5", "OMP_NUM_THREADS": "1"}, "2"),  # the launcher imported paddle: that 1 is its own
        ({"PADDLE_TRAINERS_NUM": "100"}, "1"),
        ({"PADDLE_TRAINERS_NUM": "4", "OMP_NUM_THREADS": "7"}, "7"),
        ({"PADDLE_TRAINERS_NUM": "1", "OMP_NUM_THREADS": "1"}, "1"),
        ({"PADDLE_TRAINERS_NUM": "what"}, "12"),
    ]:
        runtime.prepare(launch)
        assert launch["OMP_NUM_THREADS"] == threads


def test_other_processors_and_libraries(machine, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_info", dict)
    monkeypatch.setattr(runtime, "_is_glibc", lambda: False)
    environ = {}
    assert [setting.value for setting in runtime.prepare(environ)] == ["12", None, None]
    assert environ == {"OMP_NUM_THREADS": "12"} and machine == []


def test_an_old_glibc_gets_the_largest_threshold_it_accepts(monkeypatch):
    class Old:
        @staticmethod
        def mallopt(number, value):
            return int(number != -2 and value != 1 << 30)

    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: Old)
    settings = runtime.prepare({"PPDET_LITE_RUNTIME": "malloc"})
    assert [setting.value for setting in settings] == [str(32 << 20), str(2**31 - 1), None]
    assert str(settings[2]) == "M_TOP_PAD left unchanged (refused by glibc)"


def test_after_paddle_it_is_too_late(machine, monkeypatch):
    monkeypatch.setattr(runtime, "_paddle_is_imported", lambda: True)
    environ = {"OMP_NUM_THREADS": "1"}  # as importing paddle leaves it
    with pytest.warns(
        RuntimeWarning, match="is not set: paddle is already imported; import ppdet_lite before"
    ) as caught:
        settings = runtime.prepare(environ)
    assert len(caught) == 2 and [setting.value for setting in settings[:2]] == [None, None]
    assert environ == {"OMP_NUM_THREADS": "1"}
    assert machine == MALLOPT  # never too late


def test_cores_respect_affinity_and_quota(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    files = {}
    monkeypatch.setattr(runtime, "_read", lambda path: files.get(path, ""))
    assert runtime.usable_cores() == 6
    for quota, cores in [("max 100000", 6), ("150000 100000", 2), ("10000 100000", 1), ("800000 100000", 6)]:
        files["/sys/fs/cgroup/cpu.max"] = quota + "\n"
        assert runtime.usable_cores() == cores
    files.clear()
    files["/sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000\n"
    for quota, cores in [("-1\n", 6), ("300000\n", 3)]:
        files["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = quota
        assert runtime.usable_cores() == cores


def test_cpu_info_is_the_first_processors(monkeypatch):
    monkeypatch.undo()
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: A: B\n\nprocessor\t: 1\nvendor_id\t: x\n"
    monkeypatch.setattr(runtime, "_read", lambda _: text)
    assert runtime.cpu_info() == {"processor": "0", "vendor_id": "AuthenticAMD", "model name": "A: B"}


def test_only_paddles_thread_warning_is_suppressed(capsys):
    with pytest.raises(ZeroDivisionError), runtime.quiet_import():
        print("WARNING: OMP_NUM_THREADS set to 2, not 1. The ...", file=sys.stderr)
        print("PLEASE USE OMP_NUM_THREADS WISELY.", file=sys.stderr)
        print("WARNING: another", file=sys.stderr)
        print(1 / 0)
    assert capsys.readouterr().err == "WARNING: another\n"


def python(code: str, **environ: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environ}, capture_output=True, text=True, timeout=120)


def test_importing_the_package_is_light_and_sets_the_threads():
    heavy = {"paddle", "numpy", "pandas", "matplotlib", "cv2", "safetensors", "pydantic", "yaml", "tqdm"}
    done = python(f"import os, sys, ppdet_lite; print(os.environ['OMP_NUM_THREADS'], {heavy} & set(sys.modules))")
    assert done.stdout.split() == [str(real_cores()), "set()"], done.stderr
    done = python("import os, ppdet_lite; print(os.environ.get('OMP_NUM_THREADS'))", PPDET_LITE_RUNTIME="off")
    assert done.stdout == "None\n"
    done = python("import ppdet_lite; ppdet_lite.nothing")
    assert "AttributeError: module 'ppdet_lite' has no attribute 'nothing'" in done.stderr


def test_importing_the_package_after_paddle_warns():
    code = "import sys, types; sys.modules['paddle'] = types.ModuleType('paddle'); import ppdet_lite"
    assert "RuntimeWarning: OMP_NUM_THREADS is not set: paddle is already imported" in python(code).stderr
    assert python(code, PPDET_LITE_RUNTIME="off").stderr == ""


def real_cores() -> int:
    done = python("from ppdet_lite.core import runtime; print(runtime.usable_cores())")
    return int(done.stdout)


def test_paddle_is_imported_without_noise_and_with_our_threads():
    code = """
import os, ppdet_lite
from ppdet_lite.core import runtime
with runtime.quiet_import():
    import paddle
print(os.environ["OMP_NUM_THREADS"])
"""
    done = python(code, OMP_NUM_THREADS="2")
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_env_check_reports_and_ends_well():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "env_check.py"],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for text in (
        "paddle: paddlepaddle",
        "numpy: numpy",
        "OMP_NUM_THREADS left unchanged (the user has set 2)",
        "GFLOP/s",
    ):
        assert text in done.stdout


def test_env_check_names_a_missing_package():
    code = """
import runpy, sys
from importlib import metadata
whole = metadata.distributions
metadata.distributions = lambda: [one for one in whole() if "paddle" not in one.metadata["Name"]]
sys.modules["paddle"] = None
runpy.run_path("tools/env_check.py", run_name="__main__")
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "paddle: MISSING: pip install paddlepaddle" in done.stdout
    assert "paddle cannot be imported: " in done.stdout
