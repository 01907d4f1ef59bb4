"""Update rules on AdaHessian's engine: options by name."""

SOPHIA = {
    "second_moment": "signed",
    "averaging": "signed",
    "block_size": None,
    "bias_correction": None,
    "update_interval": 2,
    "betas": (0.96, 0.99),
    "eps": 1e-10,
    "update_clip": 0.01,
    "lr": 6.0,
}
SASSHA = {
    "second_moment": "mean_abs",
    "averaging": "signed",
    "block_size": None,
    "bias_correction": "steps",
    "update_interval": 2,
    "hessian_power": 0.5,
}
RULES = {
    "sophia": SOPHIA,
    "sassha": SASSHA,
    "clipped": {"update_clip": 0.1},
    "clipped signed rows": {**SOPHIA, "block_size": "row", "hessian_power": 0.5, "eps": 1e-3},
    "magnitudes": {"second_moment": "mean_abs"},
    "magnitudes, no power": {"second_moment": "mean_abs", "hessian_power": 0.0, "lr": 0.05},
    "magnitudes of samples": {"second_moment": "mean_abs", "num_samples": 2, "update_clip": 0.3},
    "signed, corrected": {**SOPHIA, "bias_correction": "refreshes", "num_samples": 2},
    "steps": {"bias_correction": "steps", "update_interval": 3},
    "no correction": {"bias_correction": None, "eps": 0.1},
    "ascent": {**SOPHIA, "maximize": True, "weight_decay": 0.01},
}
