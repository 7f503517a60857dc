"""The pipelines by name, as `module:function`; each function makes one from `CompileOptions`."""

PIPELINES = {
    "augment": "pipelines.augment:build",
    "promote": "pipelines.afterwards:build_promote",
    "evaluate": "pipelines.afterwards:build_evaluate",
    "ratio": "pipelines.afterwards:build_ratio",
    "sweep": "pipelines.afterwards:build_sweep",
}
