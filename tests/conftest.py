"""ppdet_lite sets up the CPU runtime, which has to happen before any test imports paddle."""

import ppdet_lite  # noqa: F401
