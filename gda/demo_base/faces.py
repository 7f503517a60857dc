"""The handwriting faces that the demo base is pre-trained on: their list and their download.

They are npm packages of Fontsource, each at an exact version. Their licences allow rendering; no font is shipped with gda.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gda.errors import DataError, MissingError
from gda.io.atomic import write_bytes

_SECONDS = 600  # timeout of npm, which downloads up to some 150 MB


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face: `file` of the npm package `package`, in its Latin subset; captions may use `style` for it."""

    package: str
    version: str
    file: str
    licence: str
    sha256: str
    style: str = "handwritten"

    @property
    def spec(self) -> str:
        """The package with its version, in npm's notation."""
        return f"{self.package}@{self.version}"


def _face(name: str, version: str, cut: str, licence: str, sha256: str) -> Face:
    return Face(package=f"@fontsource/{name}", version=version, file=f"{name}-latin-{cut}.woff", licence=licence, sha256=sha256)


# Chosen by eye for digits that look handwritten with a pen. Each face has all of `glyphs.CHARACTERS`, upper and lower case distinct.
HANDWRITING: tuple[Face, ...] = (
    _face("alex-brush", "5.3.0", "400-normal", "OFL-1.1", "430af56b6714603f63cf1e700232dccdc165cfe443c111085c93c631f4e7a4ed"),
    _face("allura", "5.3.0", "400-normal", "OFL-1.1", "7507db0d0a02fb9259cdcab4e45295a4c053f8c7c8055009f257c698cedd4237"),
    _face("annie-use-your-telescope", "5.3.0", "400-normal", "OFL-1.1", "555a3ba045673dfa29aa1b2ed52f17772212380d2da9a79dc813ef51e26b0147"),
    _face("architects-daughter", "5.3.0", "400-normal", "OFL-1.1", "0249dd5f81431dbf8a8406996c43f8018bf707221cf261d75145f083bb7091cf"),
    _face("bad-script", "5.3.0", "400-normal", "OFL-1.1", "07202e03862cf10af6c0a9f5cfce39ef10e1923b64b965c3185b5ddef61b91f1"),
    _face("birthstone", "5.3.0", "400-normal", "OFL-1.1", "4e3a2fca18ee7678c2384097c18a135d6fab78840892eb12cc63ac34c7d8bd49"),
    _face("caveat-brush", "5.3.0", "400-normal", "OFL-1.1", "2c57f92c541e3d7c8050ca99d8ce3f6ee2f64cbdfe72f304f6d7683f0db388ba"),
    _face("caveat", "5.3.0", "400-normal", "OFL-1.1", "38b98dbeb922a14a74dfb41f83fc24e0e645e2eed9ce72145fefbdae8828cbfb"),
    _face("caveat", "5.3.0", "700-normal", "OFL-1.1", "c8d3c5458a52f12ad42b7b3f9a8cab1f1afda6062b12623e4bc8957f00ebec16"),
    _face("cedarville-cursive", "5.3.0", "400-normal", "OFL-1.1", "8d8360a98492b42d02c17e94c38bcd2a3cce6db6b9b430f3a110e71f81d7149c"),
    _face("chilanka", "5.3.0", "400-normal", "OFL-1.1", "e13443776c36ae978fcd63bb5e54af10043ed9df172f924e427e0e40ec783e39"),
    _face("comic-neue", "5.3.0", "400-normal", "OFL-1.1", "54c45748205d08203132f268717d38a32e107a369081a0467e9aa7750668c10d"),
    _face("comic-neue", "5.3.0", "400-italic", "OFL-1.1", "7df7299f966b716e282f40c810f9be4514925cd28d7bdb9d164c44e8aebc82ac"),
    _face("comic-neue", "5.3.0", "700-normal", "OFL-1.1", "ec2ab4e271dead24d2ce08b5527c9be4910c7847f648c034f8cdee0928cff8e0"),
    _face("comic-relief", "5.3.0", "400-normal", "OFL-1.1", "39976295c00d8f1b88a8fc9f2c44c9a78986dd205211fede15b6d99dcc806af9"),
    _face("cookie", "5.3.0", "400-normal", "OFL-1.1", "15a6cbd163886857d89b3d5743237d606ab45002d00e5cc8d317d7df7bc65b7e"),
    _face("courgette", "5.3.0", "400-normal", "OFL-1.1", "8cacc9a075ce6f2c68e0689b1be992376cf72ed0adf9a577cd9e0a8663b9d459"),
    _face("covered-by-your-grace", "5.3.0", "400-normal", "OFL-1.1", "876d8371eedf1f9add237910aea034ca42cd5bdc8f7d722c7a04819ab3f711b8"),
    _face("damion", "5.3.0", "400-normal", "OFL-1.1", "8246dbcc6c2409f46f364937f59e9813e27f84163a6c4ef3277a211d4c164f70"),
    _face("dancing-script", "5.3.0", "400-normal", "OFL-1.1", "3e114c39b274829edb96a698275563336a42ec5c2a9c1fb7d7108b8bb804bfd3"),
    _face("dancing-script", "5.3.0", "700-normal", "OFL-1.1", "d07ab744eafd2cbe737dbb83c22ed3f605809309731fbe1bda7c36b1c53eaa87"),
    _face("delicious-handrawn", "5.3.0", "400-normal", "OFL-1.1", "35ce71897055be38672facf77da13ec0bde5d918ea90ae11e78b838b3a0aa01c"),
    _face("delius", "5.3.0", "400-normal", "OFL-1.1", "eabc55870044215231d9f905b1b898926bcf588dc78e53523ea6590281b606f1"),
    _face("ephesis", "5.3.0", "400-normal", "OFL-1.1", "e5573281536cae9308653c158cb06710c69c184240efa01681672241f3763a69"),
    _face("gaegu", "5.3.0", "400-normal", "OFL-1.1", "6d4c9dac093fce05bcf214b7b1e9d60de7ecae8a22aa940d63e586bcf32cab29"),
    _face("gaegu", "5.3.0", "700-normal", "OFL-1.1", "4ab9e7c071ac9c794e61fe24beb73d5a453fb268f0b3a4d0e84bfed837bc9886"),
    _face("gloria-hallelujah", "5.3.0", "400-normal", "OFL-1.1", "31e7def8cf155d4dcc98216517ad509923a8a197bc9c8937668d04767c52040e"),
    _face("gochi-hand", "5.3.0", "400-normal", "OFL-1.1", "82a4149218f2edccef96d2b0ed5bf92adc6ea290222bac4dcfa3de91afb6b3a3"),
    _face("handlee", "5.3.0", "400-normal", "OFL-1.1", "9a8af5254df769bbdc196fd998231daec67c81dc3d6fd6f294ed80c2c4343551"),
    _face("herr-von-muellerhoff", "5.3.0", "400-normal", "OFL-1.1", "546db96a99d6321fa0318cd3ab66bc7d5e2e4d7632aa234d199f5cbe650eaf2d"),
    _face("homemade-apple", "5.3.0", "400-normal", "Apache-2.0", "998f34b48e0bcb8974dc6e8d94961a87689ca40e3258554d2f6fc3778b1968a3"),
    _face("indie-flower", "5.3.0", "400-normal", "OFL-1.1", "2cf7154e899ad16246196238d6d13f0135c5feba2d8ccde5d97a22664d012660"),
    _face("italianno", "5.3.0", "400-normal", "OFL-1.1", "4c93311e355d0ffab55fed06847d08d79bb9aa286ee9652e2998bd40a92519d6"),
    _face("itim", "5.3.0", "400-normal", "OFL-1.1", "b226c76f3c05960cc30eaeca322d31cc5ecbeb4c693996d5d0964f892de12b46"),
    _face("kalam", "5.3.0", "400-normal", "OFL-1.1", "70ab8c1d2c10a28f213c6f1c359888624d5e650ffcd64f93a8194c3e14403746"),
    _face("kalam", "5.3.0", "700-normal", "OFL-1.1", "c873bc1baaf504ff4ef11a733a0a857e2cf2fb1ad1be125b0f15ce2d57adefa0"),
    _face("licorice", "5.3.0", "400-normal", "OFL-1.1", "71980143949c400f96354029d3c98b743018b69045b13bdbd6089150d692275f"),
    _face("liu-jian-mao-cao", "5.3.0", "400-normal", "OFL-1.1", "cab561530949aaacec3f941e88d05386818c24b5a54ea50d2c5a50e0fefec0ae"),
    _face("long-cang", "5.3.0", "400-normal", "OFL-1.1", "2392465c01aa8beaf5495ad22a8c006115e48a21f3a10ec774aaee7aef51522b"),
    _face("mansalva", "5.3.0", "400-normal", "OFL-1.1", "956720ae5632b40a4f79e92b27b936e174a038aa41b8638d30965c61ab465aff"),
    _face("marck-script", "5.3.0", "400-normal", "OFL-1.1", "c26db9210c0b2823550e11baaeb2b6d234e5e5a14e8e6497029f29844859610d"),
    _face("mr-de-haviland", "5.3.0", "400-normal", "OFL-1.1", "e35c50397f33adddb0a98021c8925d9001aaaa44cb51dba869540e7dfa78bc3c"),
    _face("ms-madi", "5.3.0", "400-normal", "OFL-1.1", "58626fb43d810fa63dd379d389d8c0c8a62f1e7fd7af50d2313a2d98bb39506e"),
    _face("nanum-brush-script", "5.3.0", "400-normal", "OFL-1.1", "4b1a6cfcd3147291f434cbf6a7b83fdaeba0f4c78190bb6290ef56650a3fc325"),
    _face("nanum-pen-script", "5.3.0", "400-normal", "OFL-1.1", "08cdd640e142c977071b4c3d5c33fd9ec322990e540f5511ca2fccff4568d0ec"),
    _face("neucha", "5.3.0", "400-normal", "OFL-1.1", "b0c09e2ecd7d760fb997f926f2d15e53c57561802fb071a317832942536ca82a"),
    _face("oooh-baby", "5.3.0", "400-normal", "OFL-1.1", "8adff98725aa267417e7cc2543a08056d22a170bea51de1b368c60a217e7a2bd"),
    _face("patrick-hand", "5.3.0", "400-normal", "OFL-1.1", "0f7031f6665437e04d6f354c5f64d6ae6777b498afbe804638c45b957a7ce8aa"),
    _face("playpen-sans", "5.3.0", "400-normal", "OFL-1.1", "25b16389b5a9978b1b9949398c494451d02c738f837e64095601e1c8447341fb"),
    _face("playpen-sans", "5.3.0", "700-normal", "OFL-1.1", "210e18cb8d1b760d2dcc551bb9c298a3053313a7ae903f56cda3937fbc43dce6"),
    _face("poor-story", "5.3.0", "400-normal", "OFL-1.1", "15608168b3f53bff2060591a8a6953c9ab1c91eb19529e15b973ac2b70ca709f"),
    _face("reenie-beanie", "5.3.0", "400-normal", "OFL-1.1", "1b86681155e125625f01839b2e6688dde2b2a7766a8eb49645b3a8707c2bee9f"),
    _face("sacramento", "5.3.0", "400-normal", "OFL-1.1", "d3522a9bd9a636911205d65f8031b2baf2c1b1e91fc35070029dbf887364bd29"),
    _face("satisfy", "5.3.0", "400-normal", "Apache-2.0", "5d08f3999955e4cc4eb26cc27496751a9b15f9cd47d69332d2c7f8902ced3f49"),
    _face("schoolbell", "5.3.0", "400-normal", "Apache-2.0", "a448b8f4209a8ca16adc48753170f40a57e17f70675963e092501ed48842e4c8"),
    _face("shadows-into-light", "5.3.0", "400-normal", "OFL-1.1", "93cff8110a18bb3e1fb0179c95f706ed1e8037e2e527c4cb425b46deaddbd975"),
    _face("shantell-sans", "5.3.0", "400-normal", "OFL-1.1", "8aa8fe63633c806fac26f8ae5c712851eb67d8e1cd34555873d4e60abe685d31"),
    _face("shantell-sans", "5.3.0", "400-italic", "OFL-1.1", "286bb14f67ec3b445b9e237795519b278f355dc8035a0c8203e8eedbbd971207"),
    _face("shantell-sans", "5.3.0", "700-normal", "OFL-1.1", "664ed9afb50474a8cc56038eac6a8419a60de372fb5d3156354d4a02f0ba73cb"),
    _face("short-stack", "5.3.0", "400-normal", "OFL-1.1", "db596e8545afc95f708ad2d5ac878771998f7378da84c56759527fbdb02f5836"),
    _face("sriracha", "5.3.0", "400-normal", "OFL-1.1", "5d58be0698ba9a1b621ca2fa6d44e0b08b50fed7d913c956a4c0a9fd9fbfaa40"),
    _face("sue-ellen-francisco", "5.3.0", "400-normal", "OFL-1.1", "e2c988155c07d4a26b81216397fa1841af0916c9737a61e05ea38bd1bd5361b1"),
    _face("swanky-and-moo-moo", "5.3.0", "400-normal", "OFL-1.1", "f4f292b60677133249ab543ca178fa6786d3dd9681899ef7ccde255bf956aced"),
    _face("the-girl-next-door", "5.3.0", "400-normal", "OFL-1.1", "301aabf8a983d1231988eea6e125338a3933bd69de8b14137df80840c8d8c5e8"),
    _face("vibur", "5.3.0", "400-normal", "OFL-1.1", "f13c8b62aa8abf958356887bc6e44d9af48037c38f96b238e66ec1b537b0dd4e"),
    _face("whisper", "5.3.0", "400-normal", "OFL-1.1", "89206755667e575480ab41f2f01f6249b79e8ce764a92ad9f2b503baafbdc81d"),
    _face("yomogi", "5.3.0", "400-normal", "OFL-1.1", "889ffc6f4e2587b8bd94d0b2c7ddd2f7bb3d89b25be1b6f3290775620a204210"),
    _face("zen-kurenaido", "5.3.0", "400-normal", "OFL-1.1", "1e20aeb08f255fbcf0ab5ccd03296d18bbeac3cefdb95e09c5b1676d73ac33b7"),
    _face("zhi-mang-xing", "5.3.0", "400-normal", "OFL-1.1", "e003a2de2a5db5adab3a36a2ee041f034ba611edf29d57aa706aa86dc17e9c76"),
)


def fetch_faces(folder: Path, faces: Sequence[Face] = HANDWRITING) -> int:
    """Fetch the faces that are missing in `folder` with npm; returns their number.

    Raises `MissingError` without npm or a registry, `DataError` for a file that is not the declared one, existing files included.
    """
    missing = [face for face in faces if not (folder / face.file).exists()]
    if missing:
        with tempfile.TemporaryDirectory() as work:
            archives = _pack(sorted({face.spec for face in missing}), Path(work))
            for face in missing:
                data = _member(archives[face.spec], face)
                _check(data, face, archives[face.spec].name)
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / face.file, data)
    face_files(folder, faces)
    return len(missing)


def face_files(folder: Path, faces: Sequence[Face] = HANDWRITING) -> list[Path]:
    """The files of `faces` in `folder`, in the order of `faces`.

    Raises `MissingError` for a missing file, `DataError` for one that is not the declared one.
    """
    paths = [folder / face.file for face in faces]
    for path, face in zip(paths, faces, strict=True):
        if not path.is_file():
            raise MissingError(f"{path}: no such face; fetch it with: python -m gda.demo_base.pretrain faces --out {folder}")
        _check(path.read_bytes(), face, str(path))
    return paths


def _check(data: bytes, face: Face, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != face.sha256:
        raise DataError(f"{where}: {face.file} has sha256 {found}, {face.spec} is declared with {face.sha256}")


def _pack(specs: list[str], work: Path) -> dict[str, Path]:
    """Archives of npm packages by their spec, downloaded into `work`."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingError("npm: not found; it fetches the handwriting faces (Node.js brings it)")
    command = [npm, "pack", "--json", "--ignore-scripts", "--pack-destination", str(work), *specs]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MissingError(f"npm pack: not done after {_SECONDS} s; is the package registry within reach?") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise MissingError(f"npm pack: exit code {done.returncode}: {lines[0]}")
    return {entry["id"]: work / entry["filename"] for entry in json.loads(done.stdout)}


def _member(archive: Path, face: Face) -> bytes:
    with tarfile.open(archive) as tar:
        try:
            file = tar.extractfile(f"package/files/{face.file}")
        except KeyError:
            file = None
        if file is None:
            raise DataError(f"{face.spec}: holds no files/{face.file}")
        return file.read()
