"""Columns of the tables that several modules write or read."""

PRUNED = ("name", "layer", "latents", "k", "l0", "fvu", "cosine", "dead_fraction", "delta_ce", "loss_recovered")
"""Columns of the table of pruned plain dictionaries."""
TERMINAL = {
    "fvu": "fvu",
    "cosine": "cosine",
    "l0": "l0",
    "dead": "dead_fraction",
    "delta_ce": "delta_ce",
    "recovered": "loss_recovered",
    "kl": "kl",
    "top1": "top1_agreement",
    "absorption": "mean_absorption",
    "splitting": "splitting",
    "detection": "detection_score",
    "cosine_max": "mean_max_cosine",
}
"""Column of ``dvc metrics show`` -> column of the table. More columns, or longer names, are wider than a terminal."""

SCORES = ("detection_score", "detection_above_0.7", "fuzzing_score", "fuzzing_above_0.7")
"""How well descriptions of the latents predict: what the table of runs has of it."""
