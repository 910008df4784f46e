"""What the papers report, as data, and our figures beside it.

``data/*.yaml`` holds the published cells, ``published`` reads and checks them, ``compare`` puts a sweep's beside them.
"""
