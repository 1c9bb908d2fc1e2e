"""``ditf data download`` against a server on this machine that breaks off, changes its mind and serves rubbish."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ditf import InputError, StoreError
from ditf.benchmarks import download_sources
from ditf.benchmarks.download import carry_out, plan_download
from ditf.benchmarks.download_http import ResumingDownloader
from ditf.benchmarks.download_sources import SOURCES, sources_of
from ditf.benchmarks.download_unpack import unpack
from ditf.benchmarks.registry import BENCHMARKS
from ditf.cli import main

from .minis import make_pfwillow
from .test_hpatches import make_hpatches

ZIP = "hpatches-sequences-release.zip"
LARGE = np.random.default_rng(0).bytes(400_000)  # several chunks, and no archive


class Server:
    """Files by name; ``breaks``: after how many bytes of an answer the connection is cut, answer by answer."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.tag: str | None = '"first"'
        self.ranges = True  # whether Range is honoured
        self.status = 200
        self.asked: list[dict[str, str]] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(served.files.get(self.path[1:]), 0, 200)

            def do_GET(self) -> None:
                content = served.files.get(self.path[1:])
                served.asked.append(dict(self.headers))
                start, status = 0, served.status
                asked = self.headers.get("Range")
                if content and asked and served.ranges and self.headers.get("If-Range", served.tag) == served.tag:
                    start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
                    if start >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(content)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                if self.answer(content, start, status):
                    assert content is not None
                    until = start + served.breaks.pop(0) if served.breaks else len(content)
                    self.wfile.write(content[start:until])
                    self.close_connection = True

            def answer(self, content: bytes | None, start: int, status: int) -> bool:
                self.send_response(404 if content is None else status)
                length = 0 if content is None else len(content) - start
                self.send_header("Content-Length", str(length))
                if served.tag:
                    self.send_header("ETag", served.tag)
                if status == 206 and content is not None:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                return content is not None

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def ranges_asked(self) -> list[str | None]:
        return [one.get("Range") for one in self.asked]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one = Server()
    yield one
    one.close()


def zipped(folder: Path, root: Path) -> bytes:
    """The files of ``root`` with their paths below ``folder``, stored as they are."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return content.getvalue()


@pytest.fixture(scope="module")
def planes(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("planes")
    return zipped(folder, make_hpatches(folder))


def know(monkeypatch, sha256: str | None) -> None:
    """HPatches' published checksum and size are these of the miniature."""
    [one] = SOURCES["hpatches"]
    changed = dataclasses.replace(one, sha256=sha256, size=None)
    monkeypatch.setattr(download_sources, "SOURCES", {**SOURCES, "hpatches": (changed,)})


def fetch(server: Server, folder: Path, name: str = "hpatches"):
    return carry_out(plan_download(name, folder, server.url), wait=0)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- sources ---------------------------------------------------------------------------------------------------------


def test_every_benchmark_says_where_it_comes_from_and_no_checksum_is_without_its_giver() -> None:
    assert set(SOURCES) == set(BENCHMARKS)
    for source in (one for some in SOURCES.values() for one in some):
        assert source.given_by
        assert source.url or source.page
        assert source.url is None or source.url.rpartition("/")[2] == source.file
        assert bool(source.sha256) == bool(source.sha256_from)
        assert source.sha256 is None or len(bytes.fromhex(source.sha256)) == 32
    [zipped] = sources_of("hpatches", "https://example.org/copies/")
    assert (zipped.url, zipped.sha256) == (f"https://example.org/copies/{ZIP}", SOURCES["hpatches"][0].sha256)


# --- a whole download ------------------------------------------------------------------------------------------------


def test_what_broke_off_is_asked_for_by_range_and_unpacked_like_the_original(server, planes, tmp_path, monkeypatch):
    know(monkeypatch, digest(planes))
    server.files[ZIP], server.breaks = planes, [150_000, 200_000]
    seen: list[int] = []
    plan = plan_download("hpatches", tmp_path, server.url)
    found = carry_out(plan, lambda stage, done, total: seen.append(done) if stage == ZIP else None, wait=0)
    starts = [0 if one is None else int(one[6:-1]) for one in server.ranges_asked()]
    assert len(starts) == 3
    assert 0 < starts[1] <= 150_000 < starts[2] <= 350_000
    assert [one.get("If-Range") for one in server.asked] == [None, '"first"', '"first"']
    assert seen[-1] == len(planes)
    [zipped_file] = found.files
    assert (zipped_file.sha256, zipped_file.first) == (digest(planes), False)
    assert zipped_file.path.read_bytes() == planes
    with zipfile.ZipFile(io.BytesIO(planes)) as archive:
        for name in archive.namelist():
            assert (tmp_path / name).read_bytes() == archive.read(name)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {ZIP, "hpatches-sequences-release"}
    assert any("57" in said for said in found.missing)  # the miniature is not the published archive


def test_another_run_goes_on_where_the_last_one_stopped(server, planes, tmp_path, monkeypatch) -> None:
    know(monkeypatch, digest(planes))
    server.files[ZIP], server.breaks = planes, [100_000, *[0] * 4]
    with pytest.raises(StoreError, match="give the same command to go on"):
        fetch(server, tmp_path)
    have = (tmp_path / f"{ZIP}.part").stat().st_size
    assert 0 < have <= 100_000
    server.asked.clear()
    plan = plan_download("hpatches", tmp_path, server.url)
    assert plan.files[0].have == have
    carry_out(plan, wait=0)
    assert server.ranges_asked() == [f"bytes={have}-"]
    server.asked.clear()
    assert fetch(server, tmp_path).files[0].sha256 == digest(planes)
    assert server.asked == []  # the archive is there and right


def test_a_checksum_that_nobody_publishes_is_written_and_holds_the_next_download(server, tmp_path, capsys) -> None:
    made = make_pfwillow(tmp_path / "made")
    table = (made / "test_pairs_pf.csv").read_bytes()
    (made / "test_pairs_pf.csv").unlink()
    server.files = {"PF-dataset.zip": zipped(made.parent, made), "test_pairs_pf.csv": table}
    folder = tmp_path / "data"
    first = fetch(server, folder, "pfwillow")
    assert [one.first for one in first.files] == [True, True]
    assert (folder / "PF-dataset" / "test_pairs_pf.csv").read_bytes() == table
    assert (folder / "PF-dataset.zip.sha256").read_text().split() == [
        digest(server.files["PF-dataset.zip"]), "PF-dataset.zip",
    ]  # fmt: skip
    for one in ("PF-dataset.zip", "test_pairs_pf.csv"):
        (folder / one).unlink()
    assert [one.first for one in fetch(server, folder, "pfwillow").files] == [False, False]
    (folder / "PF-dataset.zip").unlink()
    server.files["PF-dataset.zip"] += b"more"
    assert main(["data", "download", "pfwillow", str(folder), "--mirror", server.url]) == 1
    said = capsys.readouterr()
    assert digest(server.files["PF-dataset.zip"]) in said.err
    assert "from the first download into this folder" in said.out
    [kept] = folder.glob("PF-dataset.zip.rejected-*")
    assert kept.read_bytes() == server.files["PF-dataset.zip"]
    assert not (folder / "PF-dataset.zip").exists()


def test_the_command_in_a_process_of_its_own_says_source_licence_size_and_checksum(server, planes, tmp_path) -> None:
    server.files["DAVIS-2017-trainval-480p.zip"] = planes
    command = [sys.executable, "-m", "ditf", "data", "download", "davis", str(tmp_path / "in"), "--mirror", server.url]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1, done.stderr  # it holds planes, no videos
    lines = done.stdout.splitlines()
    assert lines[0].startswith("DAVIS-2017: https://davischallenge.org")
    assert lines[1].startswith("licence: ")
    assert f"{len(planes) / 1e6:,.1f} MB" in lines[2]
    assert "no SHA-256 is published" in lines[3]
    assert digest(planes) in done.stdout
    assert "missing: " in lines[-1]
    assert (tmp_path / "in" / "hpatches-sequences-release" / "i_mini" / "1.ppm").is_file()


def test_a_folder_that_is_whole_asks_no_server(server, tmp_path, monkeypatch) -> None:
    made = make_pfwillow(tmp_path)
    monkeypatch.setattr("ditf.benchmarks.pfwillow.check", lambda folder: [])
    found = fetch(server, tmp_path, "pfwillow")
    assert (found.files, found.missing, found.root, server.asked) == ((), (), made, [])


# --- servers ---------------------------------------------------------------------------------------------------------


def download(server: Server, part: Path, expected: str | None = None) -> bytes:
    ResumingDownloader(part, expected, attempts=3, wait=0)(f"{server.url}/file", str(part.with_name("file")))
    return part.with_name("file").read_bytes()


@pytest.mark.parametrize("how", ["no ranges", "another file of the same size", "a shorter file", "no validator"])
def test_parts_of_two_files_are_never_put_together(how, server, tmp_path) -> None:
    part, old = tmp_path / "file.part", LARGE
    server.files["file"], server.breaks = old, [200_000, 0, 0]
    if how == "no validator":
        server.tag = None
    with pytest.raises(StoreError, match="broken off"):
        download(server, part)
    assert part.read_bytes() == old[: part.stat().st_size] != b""
    new = old
    if how == "no ranges":
        server.ranges = False
    elif how == "another file of the same size":
        server.files["file"], server.tag = (new := old[::-1]), '"second"'
    elif how == "a shorter file":
        server.files["file"], server.tag = (new := b"short"), '"first"'
    else:
        server.files["file"] = new = old[::-1] + b"longer"
    server.breaks = []
    assert download(server, part) == new
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_part_that_is_the_whole_file_is_taken(server, tmp_path) -> None:
    server.files["file"] = LARGE
    (tmp_path / "file.part").write_bytes(LARGE)
    assert download(server, tmp_path / "file.part", digest(LARGE)) == LARGE
    assert server.ranges_asked() == [f"bytes={len(LARGE)}-"]


def test_two_processes_do_not_write_into_one_file(server, tmp_path) -> None:
    fcntl = pytest.importorskip("fcntl")
    server.files["file"] = LARGE
    with open(tmp_path / "file.part", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process is downloading"):
            download(server, tmp_path / "file.part")
    assert download(server, tmp_path / "file.part") == LARGE


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(server, tmp_path) -> None:
    server.files["file"], server.status = LARGE, 503
    with pytest.raises(StoreError, match="503"):
        download(server, tmp_path / "file.part")
    assert len(server.asked) == 3
    server.status = 403
    with pytest.raises(StoreError, match=r"refuses \(403"):
        download(server, tmp_path / "file.part")
    assert len(server.asked) == 4


def test_a_wrong_checksum_keeps_the_file_under_another_name(server, planes, tmp_path, monkeypatch) -> None:
    know(monkeypatch, "0" * 64)
    server.files[ZIP] = planes
    with pytest.raises(StoreError, match=digest(planes)):
        fetch(server, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{ZIP}.rejected-{digest(planes)[:8]}"]
    know(monkeypatch, digest(planes))
    (tmp_path / ZIP).write_bytes(b"put here by hand")
    assert fetch(server, tmp_path).files[0].sha256 == digest(planes)
    assert (tmp_path / f"{ZIP}.rejected-{digest(b'put here by hand')[:8]}").read_bytes() == b"put here by hand"


def test_a_page_in_place_of_an_archive_is_no_archive(server, tmp_path, monkeypatch) -> None:
    know(monkeypatch, None)
    server.files[ZIP] = b"<!DOCTYPE html>gone"
    with pytest.raises(StoreError, match=r"no archive, it begins with '<!DOCTYPE html>g'"):
        fetch(server, tmp_path)
    assert [path.suffix[:10] for path in tmp_path.iterdir()] == [".rejected-"]


def test_a_damaged_archive_sets_no_example_for_the_next_download(server, planes, tmp_path, monkeypatch) -> None:
    know(monkeypatch, None)
    damaged = bytearray(planes)
    damaged[5000] ^= 1
    server.files[ZIP] = bytes(damaged)
    with pytest.raises(StoreError, match="damaged archive"):
        fetch(server, tmp_path)
    (tmp_path / ZIP).unlink()
    server.files[ZIP], server.tag = planes, '"second"'
    assert fetch(server, tmp_path).files[0].first
    assert (tmp_path / f"{ZIP}.sha256").read_text() == f"{digest(planes)}  {ZIP}\n"
    (tmp_path / f"{ZIP}.sha256").write_text("not a hash")
    with pytest.raises(StoreError, match="holds no SHA-256"):
        fetch(server, tmp_path)


def test_a_table_of_the_users_own_is_kept(server, tmp_path, caplog) -> None:
    made = make_pfwillow(tmp_path / "made")
    own = tmp_path / "data" / "PF-dataset" / "test_pairs_pf.csv"
    server.files = {"PF-dataset.zip": zipped(made.parent, made), own.name: b"imageA,imageB\n"}
    fetch(server, tmp_path / "data", "pfwillow")
    assert own.read_bytes() == b"imageA,imageB\n"
    assert own.with_name(f"{own.name}.before").read_bytes() == (made / own.name).read_bytes()
    assert "it is kept as" in caplog.text


def test_what_cannot_be_is_one_sentence_before_anything_is_written(server, tmp_path, monkeypatch, capsys) -> None:
    def said(*arguments: str, code: int) -> str:
        assert main(["data", "download", *arguments]) == code
        captured = capsys.readouterr()
        assert captured.err.count("error: ") == 1
        assert len(captured.err.strip().splitlines()) == 1
        return captured.err

    folder = tmp_path / "data"
    assert "one of spair" in said("imagenet", str(folder), code=2)
    assert "http://" in said("spair", str(folder), "--mirror", "ftp://somewhere", code=2)
    assert "no such file on the server" in said("spair", str(folder), "--mirror", server.url, code=1)
    closed = Server()
    closed.close()
    assert "connection refused" in said("spair", str(folder), "--mirror", closed.url, code=1)
    assert "drive.google.com" in said("ap10k", str(folder), code=2)
    (tmp_path / "file").write_text("")
    assert "is a file" in said("spair", str(tmp_path / "file"), code=2)
    assert "choose a writable folder" in said("spair", str(tmp_path / "file" / "in"), code=1)
    root = make_hpatches(tmp_path)
    assert "give the folder above" in said("hpatches", str(root), "--mirror", server.url, code=2)
    server.files["SPair-71k.tar.gz"] = LARGE
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    assert "0.4 MB more, 1,000 bytes are free" in said("spair", str(folder), "--mirror", server.url, code=1)
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert 'pip install "ditf[eval]"' in said("spair", str(folder), "--mirror", server.url, code=2)
    assert not any(folder.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_on_the_way_is_said(server, tmp_path) -> None:
    server.files["file"] = LARGE
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="the disk is full"):
        download(server, tmp_path / "file.part")


# --- archives --------------------------------------------------------------------------------------------------------


def tarred(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", "..\\out", "C:\\out"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_out_of_the_folder_is_refused_before_anything_is_unpacked(kind, name, tmp_path) -> None:
    members, archive, folder = {"good": b"1", name: b"2"}, tmp_path / f"a.{kind}", tmp_path / "in"
    folder.mkdir()
    if kind == "tar":
        tarred(archive, members)
    else:
        with zipfile.ZipFile(archive, "w") as opened:
            [opened.writestr(zipfile.ZipInfo(one), content) for one, content in members.items()]
    with pytest.raises(StoreError, match="leaves the folder"):
        unpack(archive, folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [archive.name, "in"]


def test_links_and_clutter_are_left_aside_and_what_differs_is_named(tmp_path) -> None:
    members = {"set/a.txt": b"new", "set/b.txt": b"same", "__MACOSX/set/._a.txt": b"", "set/.DS_Store": b""}
    archive, folder = tarred(tmp_path / "a.tar.gz", members, {"set/link": "/etc"}), tmp_path / "in"
    (folder / "set").mkdir(parents=True)
    (folder / "set/a.txt").write_bytes(b"old")
    (folder / "set/b.txt").write_bytes(b"same")
    before = (folder / "set/b.txt").stat().st_ino
    found = unpack(archive, folder)
    assert (found.files, found.replaced) == (2, ("set/a.txt",))
    assert sorted(found.left_aside) == ["__MACOSX/set/._a.txt", "set/.DS_Store", "set/link"]
    assert sorted(path.name for path in (folder / "set").iterdir()) == ["a.txt", "b.txt"]
    assert (folder / "set/a.txt").read_bytes() == b"new"
    assert (folder / "set/b.txt").stat().st_ino == before


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_archive_is_said_and_leaves_no_half_file(kind, tmp_path) -> None:
    archive, folder = tmp_path / f"a.{kind}", tmp_path / "in"
    folder.mkdir()
    if kind == "tar":
        content = tarred(archive, {"a": LARGE}).read_bytes()[:300_000]
    else:
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("a", LARGE)
        content = bytearray(archive.read_bytes())
        content[1000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(StoreError, match="damaged archive"):
        unpack(archive, folder)
    assert list(folder.iterdir()) == []


def test_too_little_room_or_a_file_in_a_folders_place_is_said(tmp_path, monkeypatch) -> None:
    archive, folder = tarred(tmp_path / "a.tar.gz", {"a/b": LARGE}), tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        unpack(archive, folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(StoreError, match="unpacking needs 0.4 MB"):
        unpack(archive, folder)


def test_looking_through_a_folder_needs_none_of_what_downloads(tmp_path, monkeypatch, capsys) -> None:
    for name in ("pooch", "requests", "ditf.benchmarks.download", "ditf.benchmarks.download_http"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["data", "check", str(make_hpatches(tmp_path))]) == 1
    assert "missing: " in capsys.readouterr().out


def test_an_archive_without_an_address_is_taken_where_somebody_put_it(tmp_path) -> None:
    with pytest.raises(InputError, match="get ap-10k.zip from"):
        plan_download("ap10k", tmp_path)
    tarred(tmp_path / "ap-10k.zip", {"ap-10k/annotations/ap10k-test-split1.json": b"{}"})
    found = carry_out(plan_download("ap10k", tmp_path))
    assert found.files[0].first
    assert any("ditf data prepare ap10k" in said for said in found.missing)
