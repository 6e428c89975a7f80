"""The reproduction table: what the papers claim beside what their systems give on data at hand (``cxr-ray reproduce``).

``plan`` reads which systems to run, on which data and with what changes (``plans/*.yaml``); ``arms`` runs one training and scores it;
``table`` puts the outcomes beside the claims and writes Markdown and HTML.
"""
