"""What a config may say (`recipe`), and from a config to dataset, model and weights (`setup`).

May import optimization, modeling, data and below.
"""
