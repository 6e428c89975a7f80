"""Answers as DICOM objects that belong to the study of the image that was asked about, and a listener that gives them to a PACS.

Needs the extra ``dicom`` (highdicom, pynetdicom). No Ray.
"""
