"""Application of a detector to data sets, images and videos: COCO metric, validation loss, visualizations.

May import deployment and below.
"""
