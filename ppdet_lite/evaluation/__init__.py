"""Application of a detector to datasets, images and videos: COCO metric, validation loss, visualizations.

May import deployment and below.
"""
