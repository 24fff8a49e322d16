"""What outlives a process: files that appear whole, checkpoints, weights of ours and others, downloads.

May import core.
"""
