"""The last step of a run, however it ended."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    run: str,
    data_root: str,
    status: dsl.PipelineTaskFinalStatus,
    summary: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
):
    """Show the comparison, or how far the run came and why no further."""
    from gda.steps.entry import reported

    reported(run, data_root=data_root, state=status.state, error=status.error_message or "", summary=summary, page=page)
