"""Base weights by hub id: from a hub cache laid out by hand, and downloaded from a small hub that runs on loopback."""

import hashlib
import http.server
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import build_tiny_pipeline

from gda.cli.main import main
from gda.config.load import Config
from gda.demo_base.build import build_tiny_cascade
from gda.errors import DataError, MissingError, UsageError
from gda.generator.families.opening import load_model
from gda.generator.weights import hub
from gda.generator.weights.directory import read_card, resolve, source_of, weights_digest
from gda.generator.weights.export import export_generator
from gda.generator.weights.hub import HubId, download_command, offline_by_default, parse, with_flags
from gda.generator.weights.layout import lay_out, missing_files, used_files

REPO = "tiny-org/tiny.model_1"
MAIN, OLD = "a" * 40, "b" * 40
README = "---\nlicense: openrail++\n---\n# Tiny\n"
HUB_VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_ENDPOINT",
)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """An sd1 pipeline with plain weights."""
    return build_tiny_pipeline("sd1", tmp_path_factory.mktemp("plain") / "sd1")


@pytest.fixture(scope="session")
def repository(plain, tmp_path_factory):
    """A repository as hubs hold them: plain and fp16 weights, and much that must not be downloaded."""
    root = shutil.copytree(plain, tmp_path_factory.mktemp("repository") / "files")
    index = json.loads((root / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "README.md").write_text(README)
    _add_variant(root)
    for unwanted in ("v1.safetensors", "unet/diffusion_pytorch_model.bin", "unet/model.onnx", "text_encoder/flax_model.msgpack"):
        (root / unwanted).write_bytes(b"unwanted")
    (root / "safety_checker").mkdir()
    (root / "safety_checker" / "model.safetensors").write_bytes(b"unwanted")
    (root / "safety_checker" / "config.json").write_text("{}")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    for name in HUB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(hub._DOWNLOADING, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home" / "hub"


@pytest.fixture
def server(repository, cache, monkeypatch):
    """The repository on a hub of its own, with the network allowed."""
    with Hub(repository) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield running


class Hub:
    """The endpoints that a download needs: revision, tree, files; `refusal` (status, error code) or `page` is answered instead."""

    def __init__(self, root):
        self.root, self.refusal, self.refused_files, self.page, self.downloaded = root, None, None, None, []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method, path):
        """Status, headers and body."""
        if self.page is not None:
            return 200, {"Content-Type": "text/html"}, self.page
        if path.startswith(f"/api/models/{REPO}/revision/"):
            if self.refusal:
                return self.refuse(*self.refusal)
            known = {"main": MAIN, "old": OLD, MAIN: MAIN, OLD: OLD}
            sha = known.get(path.rpartition("/")[2])
            return self.json({"id": REPO, "sha": sha, "siblings": []}) if sha else self.refuse(404, "RevisionNotFound")
        if path.startswith(f"/api/models/{REPO}/tree/"):
            files = sorted(p for p in self.root.rglob("*") if p.is_file())
            return self.json([{"type": "file", "path": self.name(p), "size": p.stat().st_size, "oid": _etag(p)} for p in files])
        match = re.fullmatch(rf"/{REPO}/resolve/({MAIN}|{OLD})/(.+)", path)
        if match is None:
            return self.refuse(404, "RepoNotFound")
        if self.refused_files:
            return self.refuse(*self.refused_files)
        file = self.root / match[2]
        if method == "GET":
            self.downloaded.append(match[2])
        return 200, {"X-Repo-Commit": match[1], "ETag": f'"{_etag(file)}"'}, file.read_bytes()

    def name(self, path):
        return path.relative_to(self.root).as_posix()

    def json(self, content):
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def refuse(self, status, code=None):
        return status, {"X-Error-Code": code} if code else {}, b"no"

    def _handler(self):
        answer = self.answer

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, headers, body = answer(self.command, unquote(urlsplit(self.path).path))
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        return Handler


def _etag(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _add_variant(root):
    """fp16 weights next to the plain ones of every network."""
    pipeline = DiffusionPipeline.from_pretrained(root, safety_checker=None).to(dtype=torch.float16)
    for part in ("unet", "vae", "text_encoder"):
        getattr(pipeline, part).save_pretrained(root / part, variant="fp16")


def _put_in_cache(cache, repository, commit, refs=()):
    """Lay a revision out as huggingface_hub does: blobs by hash, snapshots of links to them, refs from names to commits."""
    folder = cache / f"models--{REPO.replace('/', '--')}"
    for path in (p for p in repository.rglob("*") if p.is_file()):
        blob = folder / "blobs" / _etag(path)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link = folder / "snapshots" / commit / path.relative_to(repository)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    for ref in refs:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return folder / "snapshots" / commit


def _weights(name):
    return load_model(name).network("unet").state_dict()


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", HubId(repo="org/name")),
        ("org/na.me-2@v1.0", HubId(repo="org/na.me-2", revision="v1.0")),
        ("org/name:fp16", HubId(repo="org/name", variant="fp16")),
        ("org/name@refs/pr/3:bf16", HubId(repo="org/name", revision="refs/pr/3", variant="bf16")),
    ],
)
def test_a_hub_id_is_read_and_written_alike(name, expected):
    """A hub id is parsed into repository, revision and variant, and formatted back unchanged."""
    assert parse(name) == expected
    assert str(expected) == name


@pytest.mark.parametrize(
    "name",
    [
        "demo://glyphs", "name", "/org/name", "./name", "../name", "org/name/more", "org/name@", "org/name:", "org/name:a:b",
        "org/../name", "org/name@../../x", "org/name@x/../../y", "org/na..me", "org--x/name", "org/na me", "~/name",
        "-org/name", "org/name.git", "",
    ],
)  # fmt: skip
def test_other_names_are_no_hub_ids(name):
    """Paths, the demo and malformed specs never reach the network."""
    assert parse(name) is None


def test_an_existing_directory_is_never_taken_for_a_hub_id(plain, cache, tmp_path, monkeypatch):
    """`org/name` that is a folder here is that folder, and the error for any other missing name lists all accepted forms."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(plain, tmp_path / "org" / "name")
    assert resolve("org/name") == Path("org/name")
    assert read_card("org/name").source == "name"
    with pytest.raises(MissingError, match=r"a/b/c: no such generator directory; give .* ORG/NAME\[@REVISION\]\[:VARIANT\], or demo"):
        resolve("a/b/c")


def test_a_cached_repository_loads_without_network(repository, plain, cache):
    """A hub cache laid out as the hub's own library does is enough offline: same weights, licence and commit on the card."""
    folder = _put_in_cache(cache, repository, MAIN, ["main"])
    assert resolve(REPO) == folder
    assert _same(_weights(REPO), _weights(str(plain)))
    card = read_card(REPO)
    assert (card.licence, card.source, card.digest) == ("openrail++", f"{REPO}@{MAIN}", weights_digest(plain))


def test_hf_hub_cache_wins_over_hf_home(repository, cache, tmp_path, monkeypatch):
    """The environment at the time of the call decides where the cache is, in the order of huggingface_hub."""
    assert hub.cache_dir() == cache
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    folder = _put_in_cache(tmp_path / "elsewhere", repository, MAIN, ["main"])
    assert resolve(REPO) == folder


def test_a_variant_is_what_is_loaded_and_digested(repository, cache):
    """`:fp16` gives the half-precision weights in float32, and a digest of its own that other files of the commit do not change."""
    folder = _put_in_cache(cache, repository, MAIN, ["main"])
    half, full = _weights(f"{REPO}:fp16"), _weights(REPO)
    assert all(w.dtype == torch.float32 for w in half.values())
    assert not _same(half, full)
    assert _same(half, {k: w.half().float() for k, w in full.items()})
    card = read_card(f"{REPO}:fp16")
    assert card.digest != read_card(REPO).digest
    assert card.source == f"{REPO}@{MAIN}:fp16"
    shutil.rmtree(folder / "safety_checker")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert read_card(f"{REPO}:fp16").digest == card.digest


def test_a_part_without_the_variant_gives_its_plain_weights(repository, cache, tmp_path):
    """As in diffusers, a variant need not exist for every network."""
    mixed = shutil.copytree(repository, tmp_path / "mixed")
    (mixed / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    _put_in_cache(cache, mixed, MAIN, ["main"])
    vae = load_model(f"{REPO}:fp16").pipeline.vae.state_dict()
    assert _same(vae, load_model(REPO).pipeline.vae.state_dict())
    assert not _same(_weights(f"{REPO}:fp16"), _weights(REPO))
    export_generator(f"{REPO}:fp16", {}, tmp_path / "out", prompts={}, snapshot_digest="d", steps={})
    assert _same(DiffusionPipeline.from_pretrained(tmp_path / "out").vae.state_dict(), vae)


def test_a_revision_is_a_branch_or_a_commit(repository, cache, tmp_path):
    """Two revisions in one cache stay apart, by name and by commit."""
    other = shutil.copytree(build_tiny_pipeline("sd1", tmp_path / "other", seed=1), tmp_path / "repository")
    new, old = _put_in_cache(cache, repository, MAIN, ["main"]), _put_in_cache(cache, other, OLD, ["v1.0"])
    assert [resolve(f"{REPO}@{r}") for r in ("main", MAIN, "v1.0", OLD)] == [new, new, old, old]
    assert not _same(_weights(f"{REPO}@v1.0"), _weights(REPO))
    assert read_card(f"{REPO}@v1.0").source == f"{REPO}@{OLD}"
    with pytest.raises(MissingError, match=r"@v2: no such directory.*--revision v2"):
        resolve(f"{REPO}@v2")


def test_an_export_of_a_variant_is_a_plain_directory(repository, cache, tmp_path):
    """What is fine-tuned from a variant has plain file names, loads in plain diffusers, and names the commit and licence of its base."""
    _put_in_cache(cache, repository, MAIN, ["main"])
    base, out = f"{REPO}:fp16", tmp_path / "generator"
    tuned = {k: w + 1 for k, w in _weights(base).items()}
    card = export_generator(base, {"unet": tuned}, out, prompts={"a": "a"}, snapshot_digest="d", steps={"unet": 1})
    assert not list(out.rglob("*fp16*"))
    assert not (out / "safety_checker").exists()
    assert not any(path.is_symlink() for path in out.rglob("*"))
    pipeline = DiffusionPipeline.from_pretrained(out)
    assert _same(pipeline.unet.state_dict(), tuned)
    assert _same(pipeline.vae.state_dict(), load_model(base).pipeline.vae.state_dict())
    assert (card.source, card.licence, card.base_digest) == (f"{REPO}@{MAIN}:fp16", "openrail++", read_card(base).digest)
    assert f"| base | {REPO}@{MAIN}:fp16 (digest" in (out / "README.md").read_text()
    assert read_card(str(out)) == card


def test_a_card_names_no_path_of_this_machine(plain, tmp_path):
    """A base that is a directory is named by its last component, the demo by its own name."""
    out = tmp_path / "generator"
    card = export_generator(str(plain), {}, out, prompts={}, snapshot_digest="d", steps={})
    assert card.source == plain.name
    assert str(plain) not in (out / "README.md").read_text()
    assert source_of("demo://glyphs") == "demo://glyphs"


def test_a_base_without_its_checker_exports_what_plain_diffusers_loads(repository, tmp_path):
    """A directory downloaded without the image checker that its index names still becomes a generator that loads by itself."""
    base = shutil.copytree(repository, tmp_path / "base", ignore=shutil.ignore_patterns("safety_checker", "*.fp16.*", "*.bin"))
    export_generator(str(base), {}, tmp_path / "out", prompts={}, snapshot_digest="d", steps={})
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").safety_checker is None


def test_what_a_download_tool_leaves_behind_is_not_exported(cache, tmp_path):
    """The records that `hf download --local-dir` keeps next to a cascade's stage stay there."""
    cascade = build_tiny_cascade(tmp_path / "cascade")
    (cascade / "base" / ".cache" / "huggingface").mkdir(parents=True)
    (cascade / "base" / ".cache" / "huggingface" / "x.metadata").write_text("x")
    export_generator(str(cascade), {}, tmp_path / "out", prompts={}, snapshot_digest="d", steps={})
    assert not list((tmp_path / "out").rglob(".cache"))


def test_a_file_that_diffusers_trips_over_is_never_shown_to_it(repository, cache, tmp_path):
    """A cached file without a suffix, at which diffusers' search for variants fails, is not in use and changes nothing."""
    odd = shutil.copytree(repository, tmp_path / "odd")
    (odd / "unet" / "NOTICE").write_text("x")
    _put_in_cache(cache, odd, MAIN, ["main"])
    assert _same(_weights(f"{REPO}:fp16"), {k: w.half().float() for k, w in _weights(REPO).items()})


def _shard(folder, *, older):
    """Split a network's fp16 weights in two shards with an index, in today's or the older naming."""
    from safetensors.torch import load_file, save_file

    whole = folder / "diffusion_pytorch_model.fp16.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    form = (
        "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors" if older else "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors"
    )
    weight_map = {}
    for number in (1, 2):
        half = sorted(tensors)[number - 1 :: 2]
        save_file({k: tensors[k] for k in half}, folder / form.format(number), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, form.format(number))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    name = "diffusion_pytorch_model.safetensors" + (".fp16.index.json" if older else ".index.fp16.json")
    (folder / name).write_text(json.dumps(index))


@pytest.mark.parametrize("older", [False, True])
def test_shards_of_a_variant_are_renamed_with_their_index(repository, cache, tmp_path, older):
    """Sharded variants, in both namings that hubs hold, come out as plain shards that plain diffusers loads."""
    sharded = shutil.copytree(repository, tmp_path / "sharded")
    _shard(sharded / "unet", older=older)
    folder = _put_in_cache(cache, sharded, MAIN, ["main"])
    export_generator(f"{REPO}:fp16", {}, tmp_path / "out", prompts={}, snapshot_digest="d", steps={})
    unet = DiffusionPipeline.from_pretrained(tmp_path / "out").unet.state_dict()
    assert _same(unet, {k: w.half().float() for k, w in _weights(REPO).items()})
    next((folder / "unet").glob("*00002-of-00002*")).unlink()
    with pytest.raises(MissingError, match="not whole"):
        resolve(f"{REPO}:fp16")


def test_offline_says_at_once_what_to_download_and_where_to(cache):
    """Without network or cache: one line with the command, the revision, the folder of the cache and the alternative."""
    started = time.monotonic()
    with pytest.raises(MissingError) as caught:
        resolve(f"{REPO}@v1")
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"{REPO}@v1: no such directory, as a hub id it is not whole in the hub cache {cache}, and HF_HUB_OFFLINE forbids"
    )
    assert f"`{download_command(parse(f'{REPO}@v1'))}`" in message
    assert f"hf download {REPO} --revision v1 --include" in message
    assert "--local-dir DIR" in message


def test_a_network_that_is_away_is_reported_at_once(cache, monkeypatch):
    """No answer from the hub ends in seconds, not after minutes of retries."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(MissingError, match=r"the download failed \(.+\); or where there is a network run `hf download"):
        resolve(REPO)
    assert time.monotonic() - started < 5


def test_a_cache_that_cannot_be_written_is_reported(server, tmp_path, monkeypatch):
    """Trouble with the disk is something the environment lacks, with the system's reason, and not a defect."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MissingError, match=r"the download failed \(.*Not a directory"):
        resolve(REPO)


def test_a_portal_in_place_of_the_hub_is_reported(server):
    """A network that answers every address with a page of its own is a network that is missing, in one line."""
    server.page = b"<html>please log in</html>"
    with pytest.raises(MissingError, match="the download failed") as caught:
        resolve(REPO)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(30)
def test_a_silent_network_is_given_up(cache, monkeypatch):
    """A hub that takes the connection and never answers is not waited for without end."""
    import socket

    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(MissingError, match="the download failed"):
            resolve(REPO)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("removed", ["unet", "tokenizer", "vae/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_a_cache_that_is_not_whole_is_not_used(repository, cache, removed):
    """A folder or file that is missing from the cache is missing, not loaded half."""
    folder = _put_in_cache(cache, repository, MAIN, ["main"])
    gone = folder / removed
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(MissingError, match="not whole"):
        resolve(REPO)


@pytest.mark.parametrize(("name", "infix"), [(REPO, ""), (f"{REPO}@old:fp16", ".fp16")])
def test_a_download_takes_what_is_used_and_no_more(server, cache, name, infix, caplog):
    """Weights of one variant as safetensors, configurations, tokenizer and README come over; pickles, checkers and checkpoints do not."""
    with caplog.at_level(logging.WARNING):
        folder = resolve(name)
    assert folder.name == (OLD if "@old" in name else MAIN)
    weights = {f"{part}/diffusion_pytorch_model{infix}.safetensors" for part in ("unet", "vae")} | {
        f"text_encoder/model{infix}.safetensors"
    }
    small = {server.name(p) for p in server.root.rglob("*") if p.suffix in {".json", ".txt", ".md"} and p.parent.name != "safety_checker"}
    assert set(server.downloaded) == weights | small
    assert f"downloading {name}: " in caplog.text
    server.downloaded.clear()
    assert resolve(name) == folder
    assert server.downloaded == []
    assert read_card(name).licence == "openrail++"
    assert load_model(name).image_size == 16


def test_a_download_serves_offline_runs_and_another_variant_is_added(server, cache, monkeypatch):
    """What was downloaded is found without network; of another variant only what is new comes over."""
    first = read_card(REPO)
    server.downloaded.clear()
    resolve(f"{REPO}:fp16")
    assert len(server.downloaded) == 3
    assert all(".fp16." in file for file in server.downloaded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert read_card(REPO) == first


def test_an_interrupted_download_is_completed(server, cache, monkeypatch):
    """A file that never arrived is fetched next time, and without network the rest is not taken for the whole."""
    folder = resolve(REPO)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError, match="not whole"):
        resolve(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert (resolve(REPO) / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", [REPO, f"{REPO}@old:fp16"])
def test_the_command_that_is_advised_downloads_enough(server, cache, name, monkeypatch):
    """The `hf download` that the error message prints leaves a cache that works offline, without pickles or checkpoints."""
    words = shlex.split(download_command(parse(name)))
    environment = os.environ | {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    subprocess.run([Path(sys.executable).parent / words[0], *words[1:]], check=True, env=environment, capture_output=True, timeout=120)
    assert {"unet/diffusion_pytorch_model.bin", "v1.safetensors", "safety_checker/model.safetensors"}.isdisjoint(server.downloaded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_model(name).image_size == 16


@pytest.mark.parametrize(
    ("refusal", "files", "message"),
    [
        ((401, None), None, r"the hub shows none: check the name at {url}/{repo}; .* run `hf auth login`"),
        ((404, "RepoNotFound"), None, r"the hub shows none: check the name at {url}/{repo}"),
        ((403, "GatedRepo"), None, r"accept its licence at {url}/{repo} and run `hf auth login`"),
        (None, (401, "GatedRepo"), r"accept its licence at {url}/{repo} and run `hf auth login`"),
        ((403, None), None, r"access is refused \(403\): accept the licence at {url}/{repo}"),
        ((404, "RevisionNotFound"), None, r"the hub has no revision main of {repo}"),
        ((500, None), None, r"the hub answers 500"),
    ],
)
def test_a_refused_download_says_what_to_do(server, refusal, files, message):
    """No such name, no log-in, a licence to accept, no such revision and a broken hub are distinguished, in one line each."""
    server.refusal, server.refused_files = refusal, files
    with pytest.raises(MissingError, match=message.format(url=re.escape(server.url), repo=re.escape(REPO))) as caught:
        resolve(REPO)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{REPO}: ")


def test_a_repository_that_cannot_be_used_is_refused_before_its_weights(repository, cache, tmp_path, monkeypatch):
    """Pickles alone, an unknown variant, an unknown family and no index are reported without downloading a weight."""
    pickled = shutil.copytree(repository, tmp_path / "pickled")
    for file in (pickled / "unet").glob("*.safetensors"):
        file.unlink()
    fancy = shutil.copytree(repository, tmp_path / "fancy")
    index = json.loads((fancy / "model_index.json").read_text())
    (fancy / "model_index.json").write_text(json.dumps(index | {"_class_name": "FancyPipeline"}))
    single = tmp_path / "single"
    single.mkdir()
    (single / "v1.safetensors").write_bytes(b"x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for number, (root, name, message) in enumerate([
        (pickled, REPO, r"unet/ weights must be safetensors, found .*diffusion_pytorch_model\.bin"),
        (repository, f"{REPO}:bf16", r"has no variant 'bf16'; its variants: fp16"),
        (fancy, REPO, r"unknown family 'FancyPipeline'"),
        (single, REPO, r"holds no model_index\.json"),
    ]):  # fmt: skip
        monkeypatch.setenv("HF_HOME", str(tmp_path / f"home{number}"))
        with Hub(root) as running:
            monkeypatch.setenv("HF_ENDPOINT", running.url)
            with pytest.raises(DataError, match=message):
                resolve(name)
            assert not [file for file in running.downloaded if not file.endswith(("model_index.json", "README.md"))]


def test_one_stage_of_a_cascade_says_how_to_lay_out_both(cache, tmp_path):
    """An IF repository is half a cascade: the error has the commands that make a whole one, and nothing is downloaded for it."""
    cascade = build_tiny_cascade(tmp_path / "cascade")
    _put_in_cache(cache, cascade / "base", MAIN, ["main"])
    message = rf"{REPO}: IFPipeline alone; .* folder of base/ and super_resolution/: `hf download {REPO} .*--local-dir CASCADE/base`"
    with pytest.raises(DataError, match=message):
        resolve(REPO)
    _put_in_cache(cache, cascade / "super_resolution", OLD, ["sr"])
    with pytest.raises(DataError, match=r"IFSuperResolutionPipeline alone; .*CASCADE/super_resolution, then give CASCADE"):
        resolve(f"{REPO}@sr")


def test_a_whole_cascade_on_a_hub_loads_and_keeps_its_card(cache, tmp_path):
    """A generator of ours that was put on a hub as it is comes back with the digest that its card states; it has no variants."""
    cascade = build_tiny_cascade(tmp_path / "cascade")
    with Hub(cascade) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", running.url)
        patch.setenv("HF_HUB_OFFLINE", "0")
        assert read_card(REPO) == read_card(str(cascade))
    assert load_model(REPO).stages == ("base", "super_resolution")
    with pytest.raises(DataError, match="a pixel cascade is loaded without a variant, got 'fp16'"):
        resolve(f"{REPO}:fp16")
    card = export_generator(REPO, {}, tmp_path / "out", prompts={}, snapshot_digest="d", steps={})
    assert (card.source, card.digest) == (f"{REPO}@{MAIN}", read_card(str(cascade)).digest)


def test_used_files_are_laid_out_by_links_too(repository, tmp_path):
    """The digest is taken over links, so that gigabytes are not copied for it; every used file is there under its plain name."""
    files = [p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()]
    used = used_files("x", files, {"model_index.json": json.loads((repository / "model_index.json").read_text())}, "fp16")
    lay_out(repository, used, tmp_path, copy=os.symlink)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_symlink()
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == set(used)
    assert missing_files(repository, used) == []


@pytest.mark.parametrize(
    ("base", "revision", "variant", "expected"),
    [
        ("org/name", "v1", None, "org/name@v1"),
        ("org/name", None, "fp16", "org/name:fp16"),
        ("org/name@v1", "v1", "fp16", "org/name@v1:fp16"),
        ("demo://glyphs", None, None, "demo://glyphs"),
        ("/some/where", None, None, "/some/where"),
    ],
)
def test_flags_are_written_into_the_hub_id(base, revision, variant, expected):
    """`--revision` and `--variant` mean the same as `@` and `:`; without them a base is unchanged."""
    assert with_flags(base, revision, variant) == expected


@pytest.mark.parametrize(
    ("base", "revision", "variant", "message"),
    [
        ("demo://glyphs", "v1", None, r"--revision v1: goes with a hub id .* got demo://glyphs"),
        ("{here}", None, "fp16", r"--variant fp16: goes with a hub id .* got"),
        ("org/name@v1", "v2", None, r"--revision v2: contradicts the base org/name@v1"),
        ("org/name:fp16", None, "bf16", r"--variant bf16: contradicts the base org/name:fp16"),
        ("org/name", None, "fp 16", r"--variant 'fp 16': not a variant"),
        ("org/name", "a:b", None, r"--revision 'a:b': not a revision"),
        ("org/name", "", None, r"--revision '': not a revision"),
    ],
)
def test_flags_that_do_not_fit_are_usage_errors(base, revision, variant, message, tmp_path):
    """A revision or variant of a directory or the demo, a contradiction or a malformed one is refused before anything is loaded."""
    with pytest.raises(UsageError, match=message):
        with_flags(base.format(here=tmp_path), revision, variant)


def test_the_command_line_hands_the_hub_id_on(cache, tmp_path, monkeypatch, capsys):
    """`gda finetune --base ... --revision ... --variant ...` is one hub id to the stage; the configured base is taken without --base."""
    from gda.stages import finetune

    request = []

    def record(config, *, base, **_):
        request.append(base)
        raise MissingError("enough")

    monkeypatch.setattr(finetune, "run", record)
    monkeypatch.chdir(tmp_path)
    command = ["finetune", "--snapshot", "s", "--out", "o"]
    assert main([*command, "--base", "org/name", "--revision", "v1", "--variant", "fp16"]) == 5
    assert main([*command, "--set", "finetune.base=org/other", "--variant", "fp16"]) == 5
    assert main(command) == 5
    assert request == ["org/name@v1:fp16", "org/other:fp16", Config().finetune.base]
    capsys.readouterr()
    assert main([*command, "--base", "demo://glyphs", "--revision", "v1"]) == 2
    assert capsys.readouterr().err == (
        "gda finetune: --revision v1: goes with a hub id ORG/NAME[@REVISION][:VARIANT] as base, got demo://glyphs\n"
    )


@pytest.mark.parametrize(
    ("message", "downloads"),
    [({}, True), ({"HF_HUB_OFFLINE": "1"}, False), ({"TRANSFORMERS_OFFLINE": "1"}, False), ({"HF_HUB_OFFLINE": "0"}, True)],
)
def test_only_a_hub_id_goes_to_the_network_and_not_against_the_users_word(server, monkeypatch, message, downloads):
    """The command line keeps libraries offline, yet downloads a hub id that is requested - unless the user's environment says offline."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in message.items():
        monkeypatch.setenv(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        offline_by_default()
        assert os.environ["HF_HUB_OFFLINE"] == message.get("HF_HUB_OFFLINE", "1")
        if downloads:
            assert resolve(REPO).name == MAIN
        else:
            with pytest.raises(MissingError, match="HF_HUB_OFFLINE forbids"):
                resolve(REPO)
            assert server.downloaded == []


def test_the_ban_is_lifted_for_the_download_alone(server):
    """In a process whose libraries were imported offline a hub id is downloaded, and afterwards they are offline again."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert resolve(REPO).name == MAIN
        assert constants.is_offline_mode()
