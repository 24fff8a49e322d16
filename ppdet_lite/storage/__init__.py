"""Files written atomically, checkpoints, weights files and downloads.

May import core.
"""
