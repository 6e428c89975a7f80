"""What ``serve_load.py`` starts and measures: the same bundle behind our service, FastAPI, LitServe and BentoML; and the client."""
