"""Commands sent to a Ray cluster through its jobs API: what goes along with them, and the client.

``request`` (what a job is made of, no Ray), ``client`` (submit, follow, look, stop).
"""
