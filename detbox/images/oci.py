"""OCI image layouts: read layer by layer, and written as one layer that other tools load.

A layout is a directory with ``oci-layout``, ``index.json`` and ``blobs/sha256``, or a tarball of one.  What is
written also has the ``manifest.json`` of ``docker save``, so that every version of ``docker load`` takes it.
Formats: github.com/opencontainers/image-spec, image-layout.md, manifest.md, config.md and layer.md.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from detbox.errors import UserError
from detbox.images import tarball
from detbox.images.manifest import TOP, Entry
from detbox.images.tree import Builder

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_REF = "org.opencontainers.image.ref.name"
_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Names of the architecture, by dpkg's: those of Go.
_MACHINE = "amd64"


def is_layout(source: str) -> bool:
    """Whether a directory or a tarball is a layout (or what ``docker save`` writes)."""
    if os.path.isdir(source):
        return os.path.exists(os.path.join(source, "index.json"))
    try:
        with open(source, "rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            for _, member in zip(range(64), tar, strict=False):
                if member.name.removeprefix("./") in ("oci-layout", "manifest.json", "index.json"):
                    return True
    except (tarfile.TarError, OSError, EOFError):
        pass
    return False


def unpack(source: str, top: str) -> list[Entry]:
    """The file system of a layout's image, unpacked flat into the empty directory ``top``.

    Every blob is compared with its digest.  Raises UserError.
    """
    with _directory(source) as place:
        builder = Builder(top)
        for layer in _layers(place, source):
            _apply(layer, builder, source)
        if len(builder.entries) == 1:
            raise UserError(f"{source} has an image without files")
        return builder.finish()


@contextlib.contextmanager
def _directory(source: str) -> Iterator[Path]:
    if os.path.isdir(source):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="detbox-oci-") as scratch:
        with open(source, "rb") as file, tarball.reading(file, source) as tar:
            builder = Builder(scratch)
            tarball.unpack(tar, builder, source)
        for entry in builder.entries.values():
            if entry.kind == "l":  # docker save wrote links between equal layers
                _resolve_link(Path(scratch), entry)
        yield Path(scratch)


def _resolve_link(top: Path, entry: Entry) -> None:
    path = top / os.fsdecode(entry.path)
    target = Path(os.path.normpath(path.parent / os.fsdecode(entry.detail)))
    path.unlink()
    if target.is_relative_to(top) and target.is_file() and not target.is_symlink():
        os.link(target, path)


def _layers(place: Path, source: str) -> list[Path]:
    if (place / "index.json").exists():
        index = _json(place / "index.json", source)
        manifest = _manifest(place, index, source)
        found = [_blob(place, layer, source) for layer in manifest.get("layers", ())]
        kinds = {layer.get("mediaType", "") for layer in manifest.get("layers", ())}
        odd = [kind for kind in kinds if "tar" not in kind]
        if odd:
            raise UserError(f"{source} has layers of the type {odd[0]!r}, which are no tarballs")
        return found
    if (place / "manifest.json").exists():
        images = _json(place / "manifest.json", source)
        if not isinstance(images, list) or len(images) != 1:
            raise UserError(f"{source} has {len(images)} images", "save one of them")
        paths = [os.fsdecode(tarball.relative(str(name), source)) for name in images[0]["Layers"]]
        return [place / path for path in paths]
    raise UserError(f"{source} is no OCI layout: it has no index.json")


def _manifest(place: Path, index: Any, source: str) -> Any:
    """The only manifest of an index for this machine; an index may lead to further ones."""
    found = index.get("manifests") if isinstance(index, dict) else None
    if not found:
        raise UserError(f"{source}: index.json names no image")
    fitting = [item for item in found if item.get("platform", {}).get("architecture", _MACHINE) == _MACHINE]
    if len(fitting) != 1:
        names = ", ".join(item.get("annotations", {}).get(_REF, "?") for item in found)
        raise UserError(
            f"{source} has {len(fitting)} images for {_MACHINE} ({names})", "copy one of them: skopeo copy"
        )
    inner = _json(_blob(place, fitting[0], source), source)
    return _manifest(place, inner, source) if "manifests" in inner else inner


def _blob(place: Path, item: Any, source: str) -> Path:
    digest = str(item.get("digest", ""))
    if not _DIGEST.fullmatch(digest):
        raise UserError(f"{source}: {digest!r} is no digest that detbox knows (sha256)")
    path = place / "blobs" / "sha256" / digest.removeprefix("sha256:")
    if not path.is_file() or path.is_symlink():
        raise UserError(f"{source} lacks the blob {digest}", "is it complete?")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest.removeprefix("sha256:"):
            raise UserError(f"{source}: the blob {digest} has another content", "copy it again")
    return path


def _json(path: Path, source: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: {path.name} cannot be read: {error}") from None


def _apply(layer: Path, builder: Builder, source: str) -> None:
    """One layer on top of the others: whiteouts remove what lower layers have."""
    lower = set(builder.entries)

    def whiteout(path: bytes, directory: bool, content: IO[bytes] | None) -> bool:
        parent, _, name = path.rpartition(b"/")
        if not name.startswith(_WHITEOUT):
            return False
        if name == _OPAQUE:
            prefix = parent + b"/" if parent else b""
            for known in sorted(lower):
                if known.startswith(prefix) and known != TOP and known in builder.entries:
                    builder.remove(known)
        else:
            gone = name.removeprefix(_WHITEOUT)
            if gone in (b"", b".", b".."):
                raise UserError(f"{source}: {os.fsdecode(path)} is no whiteout of a file")
            builder.remove(parent + b"/" + gone if parent else gone)
        return True

    with open(layer, "rb") as file, tarball.reading(file, source) as tar:
        tarball.unpack(tar, builder, source, divert=whiteout)


# ---------------------------------------------------------------------------- writing


def write(entries: Sequence[Entry], root: str, target: Path, name: str, notice: tarball.Notice) -> None:
    """Writes a layout: a directory, or a tarball if the name ends in ``.tar``.  The same image gives the same bytes.

    ``target`` must not exist; it appears when it is complete.
    """
    with tempfile.TemporaryDirectory(prefix=".detbox-oci-", dir=target.parent) as scratch:
        place = Path(scratch) / "layout"
        _write_layout(entries, root, place, name, notice)
        if target.suffix == ".tar":
            packed = Path(scratch) / "packed"
            with open(packed, "wb") as out:
                _pack(place, out)
            os.rename(packed, target)
        else:
            os.rename(place, target)


def _write_layout(entries: Sequence[Entry], root: str, place: Path, name: str, notice: tarball.Notice) -> None:
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer, diff_id = _write_layer(entries, root, blobs, notice)
    config = _put(blobs, _CONFIG, {
        "architecture": _MACHINE, "os": "linux",
        "config": {"Env": [_PATH], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created_by": "detbox image export"}],
    })  # fmt: skip
    manifest = _put(blobs, _MANIFEST, {
        "schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": [layer],
    })  # fmt: skip
    manifest["annotations"] = {_REF: "latest"}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [manifest]}
    _write_json(place / "index.json", index)
    _write_json(place / "oci-layout", {"imageLayoutVersion": "1.0.0"})
    _write_json(place / "manifest.json", [{
        "Config": _blob_path(config), "RepoTags": [f"{name}:latest"], "Layers": [_blob_path(layer)],
    }])  # fmt: skip


def _write_layer(
    entries: Sequence[Entry], root: str, blobs: Path, notice: tarball.Notice
) -> tuple[dict[str, Any], str]:
    """The layer's descriptor, and the digest of its uncompressed content."""
    path = blobs / "layer"
    with open(path, "wb") as file:
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
            hashed = _Hashing(packed)
            tarball.write(entries, root, hashed, notice)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    path.rename(blobs / digest)
    return {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": size}, hashed.digest.hexdigest()


class _Hashing:
    """A stream that is hashed on its way to another one."""

    def __init__(self, out: IO[bytes] | gzip.GzipFile) -> None:
        self.out = out
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.out.write(data)


def _put(blobs: Path, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    raw = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(raw).hexdigest()
    (blobs / digest).write_bytes(raw)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(raw)}


def _blob_path(item: dict[str, Any]) -> str:
    return "blobs/sha256/" + str(item["digest"]).removeprefix("sha256:")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")


def _pack(place: Path, out: IO[bytes]) -> None:
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(place.rglob("*")):
            info = tarfile.TarInfo(str(path.relative_to(place)))
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.mode, info.size = 0o644, path.stat().st_size
                with open(path, "rb") as file:
                    tar.addfile(info, file)

