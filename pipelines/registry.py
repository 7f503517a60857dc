"""The pipelines by name, as `module:function`; each function makes one from `CompileOptions`."""

PIPELINES = {
    "augment": "pipelines.augment:build",
}
