"""Lossy codecs, Sira's and others', judged by a model that reads what they decode."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecbench import documents, kvtc, lossy, program, tensors
from codecbench.documents import PREFIX
from codecbench.judge import Judge, Moments, moments
from codecbench.lossy import Method, Outcome
from codecbench.model import Model, smollm2
from codecbench.tensors import Cache, Tensor, rounded

Say = Callable[[str], None]

MODEL = "SmolLM2-135M-Instruct"


def folder() -> Path:
    """Where KV caches and calibrations stay between runs."""
    sira = os.environ.get("SIRA_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(sira) if sira else (Path(cache) if cache else Path.home() / ".cache") / "sira") / "codecs"


@dataclass
class Stored:
    """A document's prefix as a file."""

    name: str
    file: Path
    tokens: list[int]


class Maker:
    """The model, and files of the KV caches that it makes. A file that is there already is not made again."""

    def __init__(self, where: Path, say: Say) -> None:
        self._where, self._say = where, say
        self.model: Model
        self.model, self._encode = smollm2()

    def tokens(self, name: str) -> list[int]:
        return documents.tokens(name, self._encode)

    def made(self, name: str) -> Stored:
        """The KV cache of a document's prefix, as inference engines keep it: bfloat16, keys after RoPE."""
        ids = self.tokens(name)
        mark = hashlib.sha256(np.asarray(ids[:PREFIX], np.int32).tobytes()).hexdigest()[:8]
        file = self._where / f"{documents.stem(name)}-{mark}.safetensors"
        if not file.exists():
            self._say(f"reading {name} with the model")
            self._where.mkdir(parents=True, exist_ok=True)
            cache = self.model.read(ids[:PREFIX])[1]
            facts = {**self.facts(), "document": name}
            unfinished = file.with_suffix(".part")
            tensors.write(unfinished, {"kv": rounded(cache.joined(), "BF16")}, facts)
            unfinished.rename(file)
        return Stored(name, file, ids)

    def facts(self) -> dict[str, str]:
        """What a file says of its KV cache."""
        shape = self.model.shape
        return {
            "model": MODEL,
            "axes": ",".join(tensors.AXES),
            "rope": "half",
            "rope_theta": f"{shape.theta:g}",
            "rope_dim": str(shape.head_dim),
            "first_position": "0",
        }

    def write_moments(self, names: Sequence[str], file: Path) -> None:
        """What errors cost the model, measured over these documents."""
        self._say(f"reading {len(names)} documents for what errors cost the model")
        found: Moments = moments(self.model, [self.tokens(name) for name in names])
        parts: dict[str, Tensor] = {name: rounded(array, "F32") for name, array in vars(found).items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors.write(file, parts, {**self.facts(), "documents": ",".join(names)})


@dataclass
class Plan:
    """What is measured."""

    documents: Sequence[str]
    calibration: Sequence[str]
    """Documents, or files with KV caches"""
    methods: Sequence[str] | None
    """Names of baselines; None: all"""
    bodies: Sequence[float]
    """Of plain KVTC"""
    ours: Sequence[str] | None
    """Codecs of Sira's; None: all lossy ones that the program has"""
    presets: bool = True
    """Whether those take part by all their presets, or by the default alone"""
    moments: Path | None = None
    """What errors cost the model; None: measured, where the calibration's documents are known"""


def measure(plan: Plan, say: Say) -> dict[str, Any]:
    """Every method on every document."""
    where = folder()
    maker = Maker(where, say)
    files = [
        Path(name) if name.endswith(".safetensors") else maker.made(name).file for name in plan.calibration
    ]
    some: list[Method] = lossy.methods()
    sizes: dict[str, int] = {}
    if files and plan.bodies:
        say(f"one PCA of {len(files)} documents, for plain KVTC")
        calibration = kvtc.remembered([tensors.cache(tensors.read(file)) for file in files], where)
        sizes["kvtc-plain"] = calibration.bytes
        some += [kvtc.method(calibration, body) for body in plan.bodies]
    if plan.methods is not None:
        some = [method for method in some if method.name in plan.methods]
    missing: dict[str, str] = {}
    ours: Sequence[str] = ()
    artefact: Path | None = None
    try:
        if plan.ours != []:
            artefact = calibrated(maker, plan, files, where)
            sizes["sira"] = artefact.stat().st_size if artefact else 0
            if plan.ours is None:
                ours = program.names(artefact, lossless=False)
                ours = program.with_presets(ours, program.presets()) if plan.presets else ours
            else:
                ours = plan.ours
    except program.ProgramError as error:
        missing["sira"] = str(error)
        say(f"Sira's codecs do not take part: {error}")
    results = []
    for name in plan.documents:
        stored = maker.made(name)
        say(f"{name}: the original")
        judge = Judge(maker.model, stored.tokens, tensors.cache(tensors.read(stored.file)))
        for method in some:
            results.append(entry(name, method.name, method.about, judge, method.apply(judge.original)))
            say(line(results[-1]))
        for codec in ours:
            try:
                outcome = ours_on(stored.file, codec, artefact, where)
                results.append(entry(name, f"sira {shown(codec)}", "Sira", judge, outcome))
                say(line(results[-1]))
            except (program.ProgramError, tensors.FileError) as error:
                missing[f"sira {shown(codec)}"] = str(error)
    return {
        "model": MODEL,
        "prefix": PREFIX,
        "calibration": list(plan.calibration),
        "calibration_bytes": sizes,
        "missing": missing,
        "results": results,
    }


def calibrated(maker: Maker, plan: Plan, files: list[Path], where: Path) -> Path | None:
    """Sira's calibration of these files; with moments where there are any, or the documents are known that
    the model read."""
    if not files:
        return None
    mark = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:8]
    known = [name for name in plan.calibration if not name.endswith(".safetensors")]
    costs = plan.moments or (where / f"moments-{mark}.safetensors" if known else None)
    if costs and not costs.exists():
        maker.write_moments(known, costs)
    out = where / f"sira-{mark}.calib"
    where.mkdir(parents=True, exist_ok=True)
    program.calibrated(files, costs, out)
    return out


def shown(codec: str) -> str:
    """A codec's name in tables: a calibration is one of 64 digits there."""
    stage, at, _ = codec.partition("@")
    return stage + at


def ours_on(file: Path, codec: str, artefact: Path | None, where: Path) -> Outcome:
    """What the program decodes, and its bytes."""
    out = where / "decoded.safetensors"
    # A codec that names none but could would take the calibration if it were given.
    named = "@" in codec or codec.split(":")[0] == "kvtc"
    [said] = program.tried(file, codec, artefact if named else None, out)
    decoded = tensors.read(out)
    # It need not repeat the metadata.
    decoded.metadata = tensors.read(file).metadata
    out.unlink()
    return Outcome(tensors.cache(decoded), 8.0 * said["stored_bytes"])


def line(found: dict[str, Any]) -> str:
    return f"{found['document']}: {found['codec']}: ratio {found['ratio']:.2f}, KL {found['kl']:.5f}"


def entry(document: str, codec: str, about: str, judge: Judge, outcome: Outcome) -> dict[str, Any]:
    """One line of the table."""
    raw: Cache = judge.original
    return {
        "document": document,
        "codec": codec,
        "about": about,
        "bytes": outcome.bytes,
        "ratio": round(raw.count * 2 / outcome.bytes, 4),
        "bits_per_value": round(outcome.bits / raw.count, 4),
        **asdict(judge.judge(outcome.decoded)),
    }
