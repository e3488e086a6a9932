"""Other people's files: one module per format that reads it and, where ours go there, writes it.

``read.py`` finds out whose a file is. Everything read becomes an ordinary
``Transcoder`` or ``CrossLayerTranscoder`` in raw units.
"""
