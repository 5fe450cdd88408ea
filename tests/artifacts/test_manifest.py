"""Artifacts are published whole, described, and checked when they are read."""

import errno
import json
import os
from pathlib import Path

import pytest

from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact, own_hash, write_json
from pipeline.artifacts.publishing import publishing, seal, withdraw
from pipeline.artifacts.storage import Bucket, Folder
from tests.buckets import served


@pytest.fixture
def publish(tmp_path):
    """Publishes files with these contents."""

    def publish(files: dict[str, bytes], folder: str = "artifact", spec=None, inputs=None, facts=None) -> Artifact:
        with publishing(tmp_path / folder, "test", spec or {}, inputs or {}) as draft:
            for name, content in files.items():
                draft.path(name).write_bytes(content)
            draft.facts |= facts or {}
        return Artifact.open(tmp_path / folder / MANIFEST)

    return publish


@pytest.fixture
def artifact(publish) -> Artifact:
    return publish({"a.bin": b"first", "deep/b.bin": b"second", "c.bin": b"third"})


def files_in(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_published_can_be_read(artifact):
    assert artifact.file("a.bin").read_bytes() == b"first"
    assert artifact.file("deep/b.bin").read_bytes() == b"second"
    assert files_in(artifact.folder) == {"a.bin", "deep/b.bin", "c.bin", "manifest.json", "run.json"}


def test_the_manifest_says_what_was_read_and_written(publish, artifact):
    after = publish({"d.bin": b"x"}, "after", {"lr": 0.5}, {"data": artifact}, {"rows": 3})
    assert (after.kind, after.spec, after.facts) == ("test", {"lr": 0.5}, {"rows": 3})
    assert after.manifest["inputs"] == {"data": artifact.hash}
    # sha256 of the letter x
    assert after.files == {"d.bin": {"size": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}}


def test_equal_content_gives_an_equal_manifest_whenever_and_wherever_it_is_made(publish, artifact):
    again = publish({"c.bin": b"third", "deep/b.bin": b"second", "a.bin": b"first"}, "again")
    assert (again.folder / MANIFEST).read_bytes() == (artifact.folder / MANIFEST).read_bytes()


@pytest.mark.parametrize("change", [{"files": {"a.bin": b"First"}}, {"spec": {"x": 1}}, {"facts": {"x": 1}}])
def test_the_hash_is_over_files_settings_and_facts(publish, change):
    given = {"files": {"a.bin": b"first"}}
    assert publish(**given).hash != publish(**{**given, **change}, folder="other").hash


def test_the_hash_is_over_inputs(publish):
    one, two = publish({"a": b"1"}, "one"), publish({"a": b"2"}, "two")
    assert publish({}, "x", inputs={"in": one}).hash != publish({}, "y", inputs={"in": two}).hash


def test_times_and_machines_are_not_part_of_it(artifact):
    run = json.loads((artifact.folder / "run.json").read_text())
    assert {"wall_seconds", "peak_memory_bytes", "host", "versions"} <= run.keys()
    assert run["peak_memory_bytes"] > 10 * 2**20
    (artifact.folder / "run.json").unlink()
    assert Artifact.open(artifact.folder / MANIFEST).file("a.bin").is_file()


def break_by(artifact, name, damage):
    path = artifact.folder / name
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "flipped":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif damage == "swapped":
        path.write_bytes(b"first")


@pytest.mark.parametrize(
    ("damage", "words"),
    [("missing", "missing"), ("empty", "empty"), ("short", "4 bytes"), ("flipped", "differ"), ("swapped", "bytes of a.bin")],
)
def test_damage_is_named_when_the_file_is_first_asked_for(artifact, damage, words):
    break_by(artifact, "c.bin", damage)
    assert artifact.file("a.bin").is_file()
    with pytest.raises(DamagedArtifact, match=words) as caught:
        artifact.file("c.bin")
    assert str(caught.value).startswith(str(artifact.folder / "c.bin"))
    assert str(caught.value).endswith(f"repair: python -m pipeline repair {artifact.folder / MANIFEST}")
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def default_study(monkeypatch):
    monkeypatch.delenv("SAEFLOW_CONFIGFILES", raising=False)


def test_the_repair_names_the_study_it_is_of(artifact, monkeypatch):
    monkeypatch.setenv("SAEFLOW_CONFIGFILES", "studies/x.yaml")
    break_by(artifact, "c.bin", "missing")
    with pytest.raises(DamagedArtifact, match=r"--configfile studies/x\.yaml$"):
        artifact.file("c.bin")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-5],
        lambda text: "[]",
        lambda text: text.replace('"size": 5', '"size": 6'),
        lambda text: text.replace('"kind": "test"', '"kind": "other"'),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"facts": {}', '"facts": {"rows": 1}'),
    ],
)
def test_a_manifest_that_was_changed_is_refused(artifact, damage):
    path = artifact.folder / MANIFEST
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(DamagedArtifact, match="repair: ") as caught:
        Artifact.open(path)
    assert str(caught.value).startswith(str(path))


def test_a_manifest_of_another_format_is_refused_though_its_hash_is_right(artifact):
    content = {**artifact.manifest, "format": 2}
    write_json(artifact.folder / MANIFEST, {**content, "hash": own_hash(content)})
    with pytest.raises(DamagedArtifact):
        Artifact.open(artifact.folder / MANIFEST)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path):
    with pytest.raises(DamagedArtifact, match="never finished"):
        Artifact.open(tmp_path / "nothing" / MANIFEST)


def test_a_failure_publishes_nothing_and_takes_back_the_old_manifest(artifact):
    with pytest.raises(RuntimeError), publishing(artifact.folder, "test", {}, {}) as draft:
        draft.path("a.bin").write_bytes(b"half")
        assert not (artifact.folder / MANIFEST).exists(), "readers must not take the old artifact for the new one"
        raise RuntimeError
    assert (artifact.folder / "a.bin").read_bytes() == b"first", "no file appears before all are written"
    assert not [name for name in files_in(artifact.folder) if "draft" in name or "part" in name]
    with pytest.raises(DamagedArtifact):
        Artifact.open(artifact.folder / MANIFEST)


def test_what_an_earlier_artifact_left_under_results_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("results/study/things/one")
    for names in (("a.bin", "deep/b.bin", "c/c.bin"), ("a.bin", "deep/other.bin")):
        with publishing(folder, "test", {}, {}) as draft:
            for name in names:
                draft.path(name).write_bytes(b"x")
    assert files_in(folder) == {"a.bin", "deep/other.bin", "manifest.json", "run.json"}
    assert not (folder / "c").exists()


def test_elsewhere_nothing_of_the_user_is_removed(tmp_path):
    """A step run by hand may be told to publish into any folder."""
    (tmp_path / "thesis.txt").write_text("years")
    with publishing(tmp_path, "test", {}, {}) as draft:
        draft.path("a.bin").write_bytes(b"x")
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_json_that_no_reader_could_read_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_json_is_the_same_in_any_order_of_keys_and_keeps_letters(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b.json", {"a": "ü", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert os.listdir(tmp_path) in (["a.json", "b.json"], ["b.json", "a.json"])


@pytest.mark.parametrize("call", ["size", "sha256", "read"])
def test_a_file_that_the_disk_does_not_give_is_named(artifact, monkeypatch, call):
    """Making the artifact again gives it another place on the disk."""

    def broken(self, name):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Folder, call, broken)
    monkeypatch.setattr(Folder, "sha256", broken)
    with pytest.raises(DamagedArtifact) as caught:
        artifact.content("a.bin") if call == "read" else artifact.check("a.bin")
    repair = f"python -m pipeline repair {artifact.folder / MANIFEST}"
    assert str(caught.value) == f"{artifact.folder}/a.bin: could not be read (Input/output error); repair: {repair}"


def test_a_file_that_the_disk_gives_at_the_second_look_needs_no_repair(artifact, monkeypatch):
    def broken(self, name):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Folder, "read", broken)
    with pytest.raises(UserError) as caught:
        artifact.content("a.bin")
    assert type(caught.value) is UserError
    assert str(caught.value) == f"{artifact.folder}/a.bin: could not be read (Input/output error)"


def test_a_manifest_that_the_disk_does_not_give_is_named(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(UserError, match=r"manifest\.json: could not be read \(Is a directory\)$"):
        Artifact.open(tmp_path / MANIFEST)


@pytest.fixture(scope="module")
def bucket():
    with served() as address:
        yield address


@pytest.fixture
def there(bucket, tmp_path) -> Bucket:
    """Where the files of `published` lie."""
    return Bucket(f"{bucket}/{tmp_path.name}")


@pytest.fixture
def published(there, tmp_path):
    """Publishes an artifact there, from a folder of some person."""

    def published(person: str, spec, inputs=None) -> Path:
        (tmp_path / person).mkdir(exist_ok=True)
        seal(tmp_path / person, "test", spec, inputs or {}, {}, {"location": there.address})
        return tmp_path / person

    return published


def manifests(folder: Path, there: Bucket) -> tuple[bool, bool]:
    return (folder / MANIFEST).exists(), there.size(MANIFEST) is not None


@pytest.mark.parametrize("spec", [{"x": 1}, {"x": 2}])
def test_a_manifest_is_withdrawn_there_and_here_also_for_other_settings(published, there, spec):
    folder = published("me", {"x": 1})
    withdraw(folder, there, spec, {})
    assert manifests(folder, there) == (False, False)
    withdraw(folder, there, spec, {})  # another job of the same


def test_a_manifest_there_with_the_same_settings_and_inputs_is_withdrawn_though_it_is_lost_here(published, there, artifact):
    folder = published("me", {"x": 1}, {"data": artifact})
    (folder / MANIFEST).unlink()
    withdraw(folder, there, {"x": 1}, {"data": artifact})
    assert manifests(folder, there) == (False, False)


@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("change", ["spec", "inputs"])
def test_the_manifest_of_another_person_is_not_withdrawn(published, publish, there, mine, change):
    one, two = publish({"a": b"1"}, "one"), publish({"a": b"2"}, "two")
    me = published("me", {"x": 1}, {"data": one})
    if not mine:
        (me / MANIFEST).unlink()
    published("you", {"x": 2 if change == "spec" else 1}, {"data": two if change == "inputs" else one})
    before = there.read(MANIFEST)
    with pytest.raises(UserError, match=rf"^{there.address}/manifest\.json: is of another artifact, .* choose another location") as caught:
        withdraw(me, there, {"x": 1}, {"data": one})
    assert "\n" not in str(caught.value)
    assert there.read(MANIFEST) == before
    assert (me / MANIFEST).exists() == mine


def test_what_is_no_manifest_there_is_nobodys(published, there):
    folder = published("me", {})
    there.write(MANIFEST, b"broken")
    withdraw(folder, there, {}, {})
    assert manifests(folder, there) == (False, False)


def test_a_manifest_in_a_folder_is_withdrawn(artifact):
    withdraw(artifact.folder, artifact.storage, {"other": 1}, {})
    assert not (artifact.folder / MANIFEST).exists()
