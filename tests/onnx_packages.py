"""Whether this Python can export ONNX files; tests that need it are skipped with the export's own message if not.

paddle2onnx has no wheels for Python 3.13. Tests that only run or read ONNX files do not need it.
"""

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.onnx_export import require_packages


def _missing() -> str:
    try:
        require_packages()
    except UserError as error:
        return str(error)
    return ""


MISSING = _missing()
needs_onnx_export = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def require_onnx_export() -> None:
    """Skip the test that runs, or that uses the fixture that calls this, where ONNX files cannot be exported."""
    if MISSING:
        pytest.skip(MISSING)
