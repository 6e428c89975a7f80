"""What a trained model's answers rest on, and the report a clinician reads.

========= ============================================================================================================
sample    the images that are looked at, with the model's answers and features
probes    what its features know: the source; whether they serve on a source they have not seen
cover     what is left of its AUROC without the lungs, or with the border alone
robust    contrast, noise, blur, rotation, JPEG, crop
saliency  whether heat lies in the lungs, and whether it follows the weights
audit     all of these as an AuditRecord, ``audit.json`` and ``audit.html``
verdict   from a figure with its interval to a check
embedding t-SNE and UMAP of the features
gallery   errors under their heat
report    ``cxr-ray report``: evaluation, pictures, figures as files, checklists
facts     what the artefacts know of a study, in sentences
checklist CLAIM 2024 and TRIPOD+AI, filled with these facts
========= ============================================================================================================
"""
