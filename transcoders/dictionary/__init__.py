"""The transcoder itself: parameters, normalisation, files."""
