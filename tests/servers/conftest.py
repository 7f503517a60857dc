"""A project of its own on the servers for each test."""

import pytest
from generator_runs import write_generator

from gda.tracking import connect, ensure_experiment


class Project:
    """A working folder and an experiment, for the administrator's account."""

    def __init__(self, folder, server, patch):
        self.folder, self.server, self.patch = folder, server, patch
        self.kept_in = folder / ".gda" / "unlogged"
        self.experiment = f"of-{folder.name}"
        patch.chdir(folder)
        patch.setenv("GDA_WORK_DIR", str(folder / ".gda"))
        patch.setenv("MLFLOW_EXPERIMENT_NAME", self.experiment)
        server.as_admin(patch)

    def retried(self, times):
        """Let MLflow's client repeat a request without an answer, the first time at once."""
        self.patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(times))

    def kept(self):
        """The runs that are not logged yet."""
        return sorted(self.kept_in.rglob("*.json"))

    def runs(self):
        """The runs of the experiment, as the administrator sees them."""
        with pytest.MonkeyPatch.context() as patch:
            self.server.as_admin(patch)
            client = connect()
            return client.search_runs([ensure_experiment(client)])

    def logged(self):
        """Their names and states, sorted."""
        return sorted((run.info.run_name, run.info.status) for run in self.runs())


@pytest.fixture
def project(mlflow_on_postgres, tmp_path, monkeypatch):
    return Project(tmp_path, mlflow_on_postgres, monkeypatch)


@pytest.fixture
def generator(tmp_path):
    return write_generator(tmp_path / "generator")
