"""The `measure` fixture: cost of a step, and distance of a result from its reference."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

T = TypeVar("T")


class WrongResult(AssertionError):  # noqa: N818
    """A fix that runs and computes something else is no fix."""


class Measure:
    """What one arm measured. Called with a step, it times it."""

    def __init__(self, device: str, *, cost: bool = True) -> None:
        self.device = device
        self.cost = cost
        self.step_seconds: float | None = None
        self.peak_bytes: int | None = None
        self.reference_error: float | None = None
        self.recovered: bool | None = None
        self.measurements: dict[str, Any] = {}

    def __call__(self, step: Callable[[], T], repeat: int = 3) -> T:
        """Call `step` once unrecorded and `repeat` times recorded; the last result.

        Records the median seconds and, on CUDA, the peak of allocated bytes. Where no cost is wanted, one call is all.
        """
        result = step()
        if not self.cost:
            return result
        cuda = self._cuda()
        if cuda is not None:
            cuda.synchronize()
            gc.collect()
            cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(max(1, repeat)):
            started = time.perf_counter()
            result = step()
            if cuda is not None:
                cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        self.step_seconds = _median(seconds)
        if cuda is not None:
            self.peak_bytes = int(cuda.max_memory_allocated())
        return result

    def compare(self, actual: Any, reference: Any, tolerance: float) -> float:
        """Largest relative error `max|a - r| / max|r|` in float64, over tensors, arrays, numbers and nests of them.

        Raises WrongResult if anything is not finite, has another shape, or is further off than `tolerance`.
        """
        worst, leaf = 0.0, "result"
        for where, one, other in _pairs(actual, reference, "result"):
            if one is None and other is not None:
                raise WrongResult(f"{where} is None, for example a gradient that never came")
            worst, leaf = max((worst, leaf), (_relative_error(where, one, other), where), key=itemgetter(0))
        if math.isfinite(worst):
            self.reference_error = max(worst, self.reference_error or 0.0)
        if not worst <= tolerance:
            raise WrongResult(f"the relative error of {leaf} is {worst:.3g}, more than the allowed {tolerance:.3g}")
        return worst

    def record(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name. Raises TypeError for what JSON cannot hold."""
        self.measurements[str(name)] = _json_value(value)

    def recovers(self, probe: Callable[[], Any]) -> bool:
        """Whether `probe()` succeeds in this process; `False` as its result counts as failure."""
        try:
            self.recovered = probe() is not False
        except Exception:
            self.recovered = False
        return self.recovered

    def _cuda(self) -> Any:
        torch: Any = sys.modules.get("torch")
        return torch.cuda if torch is not None and self.device.startswith("cuda") else None


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def settle(device: str) -> None:
    """Wait for the device, so that an error it has not reported yet is raised here and not in somebody else's arm."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda") and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def device_answers(device: str) -> bool | None:
    """Whether the device still computes; None if torch was never loaded."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    try:
        return float((torch.ones(8, device=device) * 2).sum()) == 16.0
    except Exception:
        return False


def _pairs(actual: Any, reference: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(reference, Mapping):
        if not isinstance(actual, Mapping) or set(actual) != set(reference):
            raise WrongResult(f"{where} has other keys than the reference")
        for key in reference:
            yield from _pairs(actual[key], reference[key], f"{where}[{key!r}]")
    elif isinstance(reference, Sequence) and not isinstance(reference, str | bytes):
        if not isinstance(actual, Sequence) or len(actual) != len(reference):
            raise WrongResult(f"{where} has another length than the reference")
        for index, item in enumerate(reference):
            yield from _pairs(actual[index], item, f"{where}[{index}]")
    else:
        yield where, actual, reference


def _relative_error(where: str, actual: Any, reference: Any) -> float:
    shapes = tuple(getattr(actual, "shape", ())), tuple(getattr(reference, "shape", ()))
    if shapes[0] != shapes[1]:
        raise WrongResult(f"{where} has shape {shapes[0]}, the reference {shapes[1]}")
    values, expected = _float64(actual), _float64(reference)
    if _is_tensor(values) or _is_tensor(expected):
        torch: Any = sys.modules["torch"]
        values, expected = torch.as_tensor(values), torch.as_tensor(expected)
    if getattr(expected, "size", None) == 0 or (_is_tensor(expected) and expected.numel() == 0):
        return 0.0
    for name, part in ((where, values), (f"the reference of {where}", expected)):
        if not math.isfinite(_largest(part * 0)):
            raise WrongResult(f"{name} is not finite")
    distance, scale = _largest(values - expected), _largest(expected)
    return distance / scale if scale else distance


def _is_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _float64(value: Any) -> Any:
    if _is_tensor(value):
        torch: Any = sys.modules["torch"]
        dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        dense = dense.dequantize() if dense.is_quantized else dense
        return dense.cpu().to(torch.complex128 if dense.is_complex() else torch.float64)
    if hasattr(value, "astype"):
        return value.astype("complex128" if value.dtype.kind == "c" else "float64")
    return value if isinstance(value, complex) else float(value)


def _largest(value: Any) -> float:
    """Largest magnitude; NaN if there is one."""
    size = abs(value)
    return float(size.max()) if hasattr(size, "max") else float(size)


def _json_value(value: Any) -> Any:
    """The value as JSON holds it; numbers that JSON lacks become the text `nan`, `inf`, `-inf`."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _json_value(value.item())
    raise TypeError(f"measure.record takes JSON values, not {type(value).__name__}")
