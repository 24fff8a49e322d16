"""What `import ppdet_lite` offers; kept apart because it imports paddle."""

from ppdet_lite.assembly.setup import build_model, load_config

__all__ = ["build_model", "load_config"]
