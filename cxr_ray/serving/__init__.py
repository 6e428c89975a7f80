"""A BUNDLE answers: in this process, over a folder with Ray Data, or over HTTP with Ray Serve."""
