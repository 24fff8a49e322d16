"""The subcommands of `ppdet-lite`, one per module: each parses its arguments, loads what they name and calls it.

May import every other folder. A module's `main` reads sys.argv; `ppdet_lite/__main__.py` lists and calls the modules.
Imports of heavy packages stand inside `main`, so that --help and errors in the arguments are shown at once.
"""
