"""Which noise schedules are supported: those of diffusion in the variance-preserving form, and rectified flows for Stable Diffusion 3."""

from gda.generator.weights.config_fields import Fields

# All of them sample from the forward process of `DDPMScheduler`; those of EDM and flow matching do not.
DIFFUSION = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
FLOW = ("FlowMatchEulerDiscreteScheduler",)
LEARNED_RANGE = "learned_range"
FIXED_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SPACINGS = ("linspace", "leading", "trailing")
_MOST_STEPS = 100_000


def check_diffusion(schedule: Fields, *, latent: bool) -> None:
    """Raises `DataError` for a schedule that training with `DDPMScheduler` would not reproduce."""
    schedule.one_of("_class_name", DIFFUSION)
    steps = schedule.whole("num_train_timesteps", 1000, high=_MOST_STEPS)
    schedule.one_of("prediction_type", _PREDICTIONS, "epsilon")
    trained = schedule.numbers("trained_betas", steps, above=0)
    if trained is not None and max(trained) >= 1:
        raise schedule.refuse("trained_betas", "null or a list of numbers above 0 and below 1")
    schedule.one_of("beta_schedule", _BETAS, "linear")
    start, end = schedule.number("beta_start", 0.0001, above=0), schedule.number("beta_end", 0.02, above=0)
    if not start <= end < 1:
        raise schedule.refuse("beta_end", f"below 1 and at least beta_start, {start:g}", end)
    for field in ("rescale_betas_zero_snr", "clip_sample", "thresholding"):
        schedule.one_of(field, (True, False), False)
    # Sampling along a flow, or at continuous times as in EDM, is another process than the trained one.
    for field in ("use_flow_sigmas", "use_dynamic_shifting"):
        schedule.one_of(field, (False, None))
    schedule.one_of("timestep_type", ("discrete",), "discrete")
    schedule.one_of("timestep_spacing", _SPACINGS, "leading")
    if schedule.content.get("steps_offset") is not None:
        schedule.whole("steps_offset", low=0, high=steps)
    learned = () if latent else (LEARNED_RANGE,)
    schedule.one_of("variance_type", (None, *FIXED_VARIANCES, *learned))


def check_flow(schedule: Fields, *, latent: bool = False) -> None:
    """Raises `DataError` for a schedule other than the straight path with a constant shift."""
    schedule.one_of("_class_name", FLOW)
    schedule.whole("num_train_timesteps", 1000, high=_MOST_STEPS)
    schedule.number("shift", 1.0, above=0)
    for field in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"):
        schedule.one_of(field, (False, None))
    schedule.require_absent("shift_terminal", reason="the path is trained to its end")
