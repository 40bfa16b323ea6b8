"""A new entry's folder from a paste: what can be read off it is filled in, what cannot says TODO.

Nothing is written before the whole draft is known, and nothing that is there is overwritten.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kb.errors import UsageError
from kb.generalize import Change, Pattern, generalize
from kb.knowledge import KnowledgeBase
from kb.models.result import Incident, Result
from kb.patterns import fold
from kb.redact import redact

TODO = "TODO: "
"""How text begins that a person has to write; `kb check` finds it."""
LARGEST_SAMPLE = 60_000
"""Code points of the paste that become the sample: its end, where the error stands."""
_ID = re.compile(r"[a-z][a-z0-9-]*/[a-z0-9][a-z0-9-]*")
_ENVIRONMENT = re.compile(r"/[^\s\"'<>|:]{1,400}?/(lib/python3\.\d{1,2}/site-packages/)")
"""Where an environment lies says nothing about the error, and names projects and people."""
_WORDS = 6
_STOP = frozenset(
    """
    a an and any are as at be because been but by can cannot could did do does during for from get got had has have if
    in into is it its may must not of on one or please should so than that the their them then there this to try was
    were when which while will with would you your error exception failed runtimeerror valueerror typeerror
    """.split()  # noqa: SIM905
)
"""Words that say nothing about an error, as they stand in no slug."""
_DOMAINS: tuple[tuple[str, str], ...] = (
    (r"^(?:vllm)\b", "vllm"),
    (r"^(?:deepspeed)\b", "deepspeed"),
    (r"^(?:unsloth|unsloth_zoo)\b", "unsloth"),
    (r"^(?:bitsandbytes)\b", "bitsandbytes"),
    (r"^(?:gptqmodel|auto_gptq|awq|autoawq|optimum)\b", "quantization"),
    (r"^(?:flash_attn|xformers|transformer_engine)\b", "attention"),
    (
        r"^(?:transformers|peft|trl|accelerate|datasets|safetensors|tokenizers|huggingface_hub|diffusers)\b",
        "huggingface",
    ),
    (r"^(?:nemo|nemo_automodel|megatron)\b", "nemo"),
    (r"^(?:jax|jaxlib|cupy|numba|tensorflow)\b", "accelerated-python"),
    (r"^(?:triton)\b", "compile"),
)
_BY_WORDS: tuple[tuple[str, str], ...] = (
    (r"\b(?:nvcc|ninja|CUDA_HOME|CMake|gcc|g\+\+|GLIBCXX)\b", "build"),
    (r"torch[./\\]_(?:dynamo|inductor)|torch\.compile|\btriton\b", "compile"),
    (r"\b(?:NCCL|nccl|ProcessGroup|torchrun|c10d|gloo|DDP|FSDP|rendezvous|ChildFailedError)\b", "distributed"),
    (r"\b(?:CUDA|cuda|cuDNN|CUDNN|cuBLAS|CUBLAS|NVIDIA|nvidia|NVML|Xid|GPU)\b", "cuda"),
)


@dataclass(frozen=True)
class Draft:
    """Everything a new folder would hold, and what it was made from."""

    entry: dict[str, Any]
    sample: str
    script: str
    changes: tuple[Change, ...]
    known: tuple[str, ...]
    """Entries that already answer this paste."""
    similar: tuple[str, ...]
    """Entries that sound alike: is it one of these?"""
    incident: Incident
    files: tuple[str, ...] = field(default=("entry.json", "verify.py", "samples/reported.txt"))

    @property
    def id(self) -> str:
        """`domain/slug`."""
        return str(self.entry["id"])


def draft(paste: str, base: KnowledgeBase, *, entry_id: str | None = None) -> Draft:
    """A draft from the failure of `paste` that no entry knows, else from its first.

    Raises UsageError if there is none in it, or `entry_id` is none.
    """
    result = base.match(paste)
    incident = _incident(result)
    if incident is None:
        raise UsageError(
            "no exception was found in this paste", "paste from `Traceback` to the last line; or copy a similar entry"
        )
    name = entry_id or propose_id(incident)
    if not _ID.fullmatch(name):
        raise UsageError(f"--id {name}: is no entry id", "domain/slug in lower case, for example pytorch/some-error")
    message = redact(_first_line(incident), paths=True)
    pattern = generalize(message)
    kind = _kind(incident)
    clean = _ENVIRONMENT.sub(r"/venv/\1", redact(paste[-LARGEST_SAMPLE:], paths=True)).strip("\n") + "\n"
    return Draft(
        entry=_entry(name, incident, fold(f"{kind}: {message}"), pattern),
        sample=clean,
        script=_script(name, incident),
        changes=pattern.changes,
        known=tuple(
            match.entry_id for match in result.matches if match.incident == result.query.incidents.index(incident)
        ),
        similar=_similar(base, incident),
        incident=incident,
    )


def write(made: Draft, root: Path) -> Path:
    """Write the folder below `root` and return it. Raises UsageError if it is there."""
    folder = root / made.id
    if folder.exists():
        raise UsageError(f"{folder} is there already", "choose another --id, or edit that entry")
    (folder / "samples").mkdir(parents=True)
    text = json.dumps(made.entry, indent=2, ensure_ascii=False) + "\n"
    for name, content in zip(made.files, (text, made.script, made.sample), strict=True):
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def propose_id(incident: Incident) -> str:
    """`domain/slug` from the raising package and the words of the message."""
    return f"{_domain(incident)}/{_slug(incident)}"


def _incident(result: Result) -> Incident | None:
    incidents = result.query.incidents
    if result.unknown_root is not None:
        return incidents[result.unknown_root]
    exceptions = [one for one in incidents if one.kind == "exception"]
    if result.matches and incidents[result.matches[0].incident] in exceptions:
        return incidents[result.matches[0].incident]
    return exceptions[-1] if exceptions else None


def _kind(incident: Incident) -> str:
    return (incident.type or "").rpartition(".")[2]


def _first_line(incident: Incident) -> str:
    """The first line of the message, and the next one where the first only announces it."""
    lines = [" ".join(line.split()) for line in incident.message.strip().split("\n") if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])


def _domain(incident: Incident) -> str:
    package = incident.package or ""
    for pattern, domain in _DOMAINS:
        if re.search(pattern, package):
            return domain
    where = " ".join([incident.message[:2_000], *(frame.file for frame in incident.frames[-6:])])
    return next((domain for pattern, domain in _BY_WORDS if re.search(pattern, where)), "pytorch")


def _slug(incident: Incident) -> str:
    constant = " ".join(generalize(redact(_first_line(incident), paths=True)).constants).replace("_", " ")
    words = [word for word in re.findall(r"[A-Za-z][A-Za-z0-9]*", constant) if word.lower() not in _STOP]
    chosen = list(dict.fromkeys(word.lower() for word in words if len(word) > 1))[:_WORDS]
    if not chosen:
        chosen = re.findall(r"[A-Z]?[a-z]+", _kind(incident) or "error")
    return "-".join(word.lower() for word in chosen)[:60].strip("-") or "error"


def _similar(base: KnowledgeBase, incident: Incident) -> tuple[str, ...]:
    words = f"{incident.type or ''} {incident.message[:400]}".split()
    return tuple(hit.entry_id for hit in base.index.related(words, limit=5))


def _entry(name: str, incident: Incident, signature: str, pattern: Pattern) -> dict[str, Any]:
    package, kind = incident.package, _kind(incident)
    literal = max((part.strip() for part in pattern.constants), key=len, default="")
    raised = [{"package": package, "literal": literal}] if package and len(literal) >= 6 else []
    return {
        "schema_version": 1,
        "id": name,
        "signature": signature,
        "regex": pattern.regex,
        "exceptions": [kind] if kind else [],
        **({"raised_by": raised} if raised else {}),
        "domain": name.partition("/")[0],
        "category": "todo",
        "root_cause": f"{TODO}what the message really means, in two to four sentences of your own.",
        "causes": [
            {
                "id": "first-cause",
                "summary": f"{TODO}one way to get it.",
                "detection": f"{TODO}what in the paste shows it.",
            }
        ],
        "recoverability": "unknown",
        "workarounds": [
            {
                "id": "first-fix",
                "action": f"{TODO}one imperative line.",
                "how": f"{TODO}the code, as test_first_fix runs it.",
                "kind": "root_cause",
                "addresses": ["first-cause"],
                "verification": "verify.py::test_first_fix",
            }
        ],
        "dead_ends": [
            {
                "id": "first-dead-end",
                "action": f"{TODO}what people try.",
                "why_fails": f"{TODO}why it does not help.",
                "verification": "verify.py::test_first_dead_end",
            }
        ],
        "sources": [{"url": "https://example.com/TODO", "kind": "report", "note": f"{TODO}where it was met."}],
    }


def _script(name: str, incident: Incident) -> str:
    package = (incident.package or "torch").replace("_", "-")
    needs = sorted({"pytest", "torch", package})
    return f'''# /// script
# requires-python = ">=3.11"
# dependencies = [{", ".join(f'"{need}"' for need in needs)}]
# ///
"""TODO: what the programs below are a miniature of."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["default"])
def config(request):
    """TODO: the configurations that all arms share, one for each cause."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    """The broken program, unguarded: the library itself must raise the error of {name}."""
    pytest.fail("TODO: write the broken program")


@pytest.mark.dead_end("first-dead-end")
def test_first_dead_end(config, device):
    """The wrong fix applied: it must still fail."""
    pytest.fail("TODO: write the attempt that does not help")


@pytest.mark.workaround("first-fix")
def test_first_fix(config, device, measure):
    """The fix applied: it must finish and compute the right numbers.

    result = measure(lambda: ...)
    measure.compare(result, reference, tolerance=0.01)
    """
    pytest.fail("TODO: write the fixed program, and compare its result with a reference")
'''
