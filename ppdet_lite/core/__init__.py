"""What every part may import: errors, log lines, the process's settings, the command line.

Imports nothing of the package.
"""
