"""The page that ``dvc plots show`` and ``dvc plots diff`` fill: it works without a network.

DVC's own page loads Vega from a CDN. This one carries it (from the package vl-convert-python),
forbids every request by its content security policy, and follows the reader's light or dark theme.
DVC fills the placeholders ``{refresh_tag}`` and ``{plot_divs}``; leaving ``{scripts}`` out is what
keeps the CDN's script tags away.
"""
