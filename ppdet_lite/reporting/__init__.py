"""What a detector gets wrong, from its results alone: matches, rates, kinds of errors, pages.

May import evaluation and below.
"""
