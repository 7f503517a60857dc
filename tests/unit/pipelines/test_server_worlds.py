"""Servers as they are met: with several users, behind certificates, busy with another upload, or none at all."""

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fake_kfp import FakeKfp

from pipelines.cli import main
from pipelines.compiling import COMPILED
from pipelines.documents import node_groups, read_compiled, tasks_of

AUGMENT = COMPILED / "augment.yaml"
PROMOTE = ["--param", "run=first"]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server is named by this machine's own environment."""
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "KUBERNETES_SERVICE_HOST", "ML_PIPELINE_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfp]:
    with FakeKfp() as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        yield server


def test_a_server_with_several_users(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A team's pipeline is found again in its namespace, next to another team's of the same name; runs are in its experiments."""
    with FakeKfp(multi_user=True) as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        for team in ("birds", "fish"):
            for _ in range(2):
                assert main(["upload", "promote", "--version", "v1", "--namespace", team]) == 0
        assert capsys.readouterr().out.count("is there already") == 2
        assert [pipeline["namespace"] for pipeline in server.pipelines.values()] == ["birds", "fish"]
        assert main(["run", "promote", *PROMOTE, "--namespace", "fish"]) == 0
        (run,) = server.runs.values()
        (experiment,) = server.experiments.values()
        assert experiment["namespace"] == "fish"
        assert server.pipelines[run["pipeline_version_reference"]["pipeline_id"]]["namespace"] == "fish"
        assert main(["run", "promote", *PROMOTE]) == 2
        assert "promote: is not on the server" in capsys.readouterr().err


def test_a_run_without_the_cache(kfp: FakeKfp) -> None:
    """Every step at every depth runs again, and nothing else of the pipeline is another."""
    assert main(["upload", "augment", "--version", "v1"]) == 0
    assert main(["run", "augment", "--no-cache", "--param", "num_seeds=6"]) == 0
    (run,) = kfp.runs.values()
    spec, platform = read_compiled(AUGMENT)
    sent = run["pipeline_spec"]["pipeline_spec"]
    cached = [task.get("cachingOptions") for _, group in node_groups(sent) for task in tasks_of(group).values()]
    assert len([options for options in cached if options is not None]) > 10
    assert not any(options for options in cached)
    for _, group in (*node_groups(sent), *node_groups(spec)):
        for task in tasks_of(group).values():
            task.pop("cachingOptions", None)  # type: ignore[attr-defined]
    assert sent == spec
    assert run["pipeline_spec"]["platform_spec"] == platform
    assert run["runtime_config"]["parameters"] == {"num_seeds": 6}
    assert "pipeline_version_reference" not in run


def test_where_outputs_are_kept(kfp: FakeKfp) -> None:
    """A bucket of one's own for runs and schedules; none is sent unless it is given."""
    assert main(["upload", "promote", "--version", "v1"]) == 0
    assert main(["run", "promote", *PROMOTE, "--pipeline-root", "s3://birds/runs", "--run-name", "first"]) == 0
    assert main(["schedule", "promote", *PROMOTE, "--interval", "3600", "--pipeline-root", "s3://birds/runs"]) == 0
    assert main(["run", "promote", *PROMOTE]) == 0
    first, plain = kfp.runs.values()
    (schedule,) = kfp.schedules.values()
    assert first["runtime_config"]["pipeline_root"] == schedule["runtime_config"]["pipeline_root"] == "s3://birds/runs"
    assert "pipeline_root" not in plain["runtime_config"]
    assert (first["display_name"], plain["display_name"]) == ("first", "promote v1")


def test_a_version_holds_how_its_steps_run(kfp: FakeKfp, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another queue is in the Kubernetes part alone: it is other content all the same."""
    assert main(["upload", "augment", "--version", "v1"]) == 0
    assert main(["compile", "augment", "--queue", "gpus", "--priority", "low", "--out", str(tmp_path)]) == 0
    file = tmp_path / "augment.yaml"
    file.write_text(AUGMENT.read_text().rpartition("\n---\n")[0] + "\n---\n" + file.read_text().rpartition("\n---\n")[2])
    assert read_compiled(file)[0] == read_compiled(AUGMENT)[0]
    assert main(["upload", "augment", "--version", "v1", "--file", str(file)]) == 2
    assert "is there with other content" in capsys.readouterr().err


def test_an_upload_that_is_overtaken(kfp: FakeKfp, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two jobs upload the same commit at once: who comes second finds what is there, and still refuses other content."""
    assert main(["upload", "promote", "--version", "v1"]) == 0
    kfp.blind = {"pipelines"}
    assert main(["upload", "promote", "--version", "v1"]) == 0
    kfp.blind = {"versions"}
    assert main(["upload", "promote", "--version", "v1"]) == 0
    assert capsys.readouterr().out.count("is there already") == 2
    assert (len(kfp.pipelines), len(kfp.versions), kfp.blind) == (1, 1, set())
    other = tmp_path / "other.yaml"
    other.write_text((COMPILED / "promote.yaml").read_text().replace("gda-data", "other-data"))
    for hidden in ("pipelines", "versions"):
        kfp.blind = {hidden}
        assert main(["upload", "promote", "--version", "v1", "--file", str(other)]) == 2
        assert "is there with other content" in capsys.readouterr().err


def test_a_pod_next_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Kubernetes says by the names of the service's variables that the server is."""
    with FakeKfp() as server:
        host, port = server.url.removeprefix("http://").split(":")
        monkeypatch.setenv("ML_PIPELINE_SERVICE_HOST", host)
        monkeypatch.setenv("ML_PIPELINE_SERVICE_PORT", port)
        assert main(["upload", "promote", "--version", "v1"]) == 0
        assert len(server.versions) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no server is named; accepted: --host ADDRESS, KF_PIPELINES_ENDPOINT"),
        (["--host", "https://127.0.0.1:9", "--ca-cert", "/nowhere.pem"], "/nowhere.pem: no such file of certificates"),
    ],
)
def test_what_lacks_is_reported(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 5 and one line, before anything is requested of this machine."""
    assert main(["run", "promote", *PROMOTE, *words]) == 5
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_page_is_no_server(kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    """A sign-in page answers everything with 200: it is not taken for a server without pipelines."""
    kfp.page = b"<html>Sign in</html>"
    for words in (["upload", "promote", "--version", "v1"], ["run", "promote", *PROMOTE]):
        assert main(words) == 5
        error = capsys.readouterr().err
        assert "the server answered with text/html, as a sign-in page; is this a Kubeflow Pipelines server of version 2?" in error
        assert error.count("\n") == 1


def test_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server is trusted by the certificates that are given, and by no others."""
    ours, others = _certificate(tmp_path / "ours"), _certificate(tmp_path / "others")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours, ours.with_suffix(".key"))
    server = FakeKfp()
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    with server:
        host = ["--host", server.url.replace("http:", "https:")]
        assert main(["upload", "promote", "--version", "v1", *host, "--ca-cert", str(ours)]) == 0
        capsys.readouterr()
        assert main(["upload", "promote", "--version", "v2", *host, "--ca-cert", str(others)]) == 5
        assert "the server's certificate is not trusted; give --ca-cert FILE" in capsys.readouterr().err
    assert len(server.versions) == 1


def _certificate(path: Path) -> Path:
    """A certificate of 127.0.0.1, signed by itself; its key lies next to it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, path.name)])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(hours=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    file = path.with_suffix(".pem")
    file.write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.with_suffix(".key").write_bytes(key.private_bytes(*kinds))
    return file


def test_a_defect_of_ours_is_one_line(kfp: FakeKfp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Never a traceback, unless GDA_DEBUG requests it."""
    assert main(["upload", "promote", "--version", "v1"]) == 0
    del next(iter(kfp.versions.values()))["pipeline_spec"]["pipeline_spec"]["root"]
    capsys.readouterr()
    monkeypatch.delenv("GDA_DEBUG", raising=False)
    assert main(["run", "promote", *PROMOTE]) == 1
    error = capsys.readouterr().err
    assert error.startswith("pipelines: internal error: KeyError: 'root'")
    assert error.count("\n") == 1
    monkeypatch.setenv("GDA_DEBUG", "1")
    assert main(["run", "promote", *PROMOTE]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder for compiled files is named."""
    (tmp_path / "file").touch()
    assert main(["compile", "promote", "--out", str(tmp_path / "file" / "below")]) == 2
    error = capsys.readouterr().err
    assert "below: Not a directory; accepted: a folder that can be written to" in error
    assert error.count("\n") == 1
