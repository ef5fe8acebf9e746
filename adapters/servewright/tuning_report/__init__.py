"""The report of a tuning study: a page for a browser, and the same in Markdown and for a terminal.

``findings`` decides what is said, ``charts`` what is drawn; ``page`` and ``texts`` lay it out. Nothing here measures.
"""
