"""Analysis of detection results and of datasets, as HTML pages, JSON and CSV.

May import evaluation and below.
"""
