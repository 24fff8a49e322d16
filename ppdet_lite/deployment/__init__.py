"""A trained detector in use: `detector` finds objects by any, `export` writes it for other places.

May import assembly and below.
"""
