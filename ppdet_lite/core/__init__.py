"""Errors, logging, process settings and command-line arguments, used by every other part.

Imports nothing of the package.
"""
