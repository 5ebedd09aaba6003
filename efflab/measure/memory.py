"""How many bytes does a training step hold?

Two methods. A record says which one it used.

- "counted" (`SavedTensors`, `tensor_bytes`): autograd is asked which tensors it keeps for the backward pass, and
  parameters, gradients and optimizer states are walked. Every storage counts once, with its whole size. The result
  is the same on every run and needs no GPU. It sees no temporary, no workspace and no rounding by an allocator.
- "allocator" (`Allocator`): torch's caching allocator on a GPU says what it has handed out, now or at most. It sees
  everything that torch allocates there, in blocks of at least 512 B.

`keep_pages` says what becomes of memory that is freed on a CPU, on which the time of the next call depends.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from efflab.errors import EfflabError
from efflab.measure.device import import_torch

Method = Literal["counted", "allocator"]


def method_for(device: Any) -> Method:
    """The method that suits a torch device: "allocator" on a GPU, else "counted"."""
    return "allocator" if device.type == "cuda" else "counted"


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the storages of some tensors, B. Views of one storage count once; None and other objects not at all."""
    return sum({_key(t): t.untyped_storage().nbytes() for t in tensors if _is_tensor(t)}.values())


def optimizer_tensors(optimizer: Any) -> list[Any]:
    """The tensors of a torch optimizer's state: moments and step counters."""
    return [v for state in optimizer.state.values() for v in state.values() if _is_tensor(v)]


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on the device, here or in a rank."""
    if isinstance(error, MemoryError) or getattr(error, "out_of_memory", False):
        return True
    torch = import_torch()
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate")
    )


@dataclass(frozen=True)
class Kept:
    """One storage that autograd keeps.

    Attributes:
        region: of which `SavedTensors.region` it was saved first.
        nbytes: of the whole storage, B, even where only a view of it is kept.
        shape, dtype: of the tensor that was saved first, such as (2, 64, 512) and "bfloat16".
        copy: it is an owned tensor in another dtype, as autocast makes it of a weight.
    """

    region: str
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    copy: bool = False


class SavedTensors:
    """Which tensors autograd keeps for the backward pass, asked with its own hooks.

    Inside `region(name)` every tensor that an operation saves is noted. `kept` lists those that the graph still holds
    at the moment of asking, so after a backward pass, or once the graph is gone, it is empty.

    What a function keeps outside of autograd's saved tensors is not seen, such as the generator's state that
    `torch.utils.checkpoint` stores.

    Args:
        own: tensors that are counted elsewhere or not at all: parameters, buffers, the input. Neither they nor their
            views are noted.
    """

    def __init__(self, own: Iterable[Any] = ()) -> None:
        self._own_tensors = list(own)  # held, so that no other storage takes their place
        self._own = {_key(t) for t in self._own_tensors}
        self._notes: list[tuple[str, weakref.ref[_Held]]] = []

    @contextlib.contextmanager
    def region(self, name: str) -> Iterator[SavedTensors]:
        """Note what is saved inside, under this name."""
        import torch

        def pack(tensor: Any) -> Any:
            if _key(tensor) in self._own:
                return tensor.detach()
            held = _Held(tensor.detach(), self._copied(tensor))  # attached, an output would hold the node that holds it
            self._notes.append((name, weakref.ref(held)))
            return held

        def unpack(held: Any) -> Any:
            return held.tensor if isinstance(held, _Held) else held

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield self

    def kept(self, region: str | None = None) -> list[Kept]:
        """The storages that are held now, each once, in the order in which they were saved; of one region or of all."""
        found: dict[int, Kept] = {}
        for name, reference in self._notes:
            held = reference()
            if held is not None:
                tensor = held.tensor
                size, dtype = tensor.untyped_storage().nbytes(), str(tensor.dtype).rpartition(".")[2]
                found.setdefault(_key(tensor), Kept(name, size, tuple(tensor.shape), dtype, held.copy))
        return [k for k in found.values() if region in (None, k.region)]

    def bytes(self, region: str | None = None) -> int:
        """Bytes that are held now, of one region or of all, B."""
        return sum(k.nbytes for k in self.kept(region))

    def _copied(self, tensor: Any) -> bool:
        node = tensor.grad_fn
        while node is not None and node.name() in ("TBackward0", "TransposeBackward0", "ToCopyBackward0"):
            node = node.next_functions[0][0]
        leaf = getattr(node, "variable", None)
        return tensor.grad_fn is not None and leaf is not None and _key(leaf) in self._own


class _Held:
    """What the graph holds in place of a saved tensor; it can be referred to weakly."""

    __slots__ = ("__weakref__", "copy", "tensor")

    def __init__(self, tensor: Any, copy: bool) -> None:
        self.tensor, self.copy = tensor, copy


class Allocator:
    """What torch's caching allocator has handed out on a GPU, B.

    Args:
        device: a torch device of type "cuda".

    Raises:
        EfflabError: another device; only GPUs have this allocator.
    """

    def __init__(self, device: Any) -> None:
        if device.type != "cuda":
            raise EfflabError(f"allocator: device {device} has no caching allocator. Count tensors there instead.")
        import torch

        self._cuda, self._device = torch.cuda, device

    def now(self) -> int:
        """Bytes in the blocks that are handed out now. A block is never smaller than what was asked for."""
        self._cuda.synchronize(self._device)
        return int(self._cuda.memory_allocated(self._device))

    def requested(self) -> int | None:
        """Bytes that were asked for, of what is handed out now; None where torch does not say."""
        found = self._cuda.memory_stats(self._device).get("requested_bytes.all.current")
        return None if found is None else int(found)

    def reset_peak(self) -> None:
        """Forget the peak; what is handed out now becomes the new one."""
        self._cuda.synchronize(self._device)
        self._cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """The most bytes that were handed out at a time since the last `reset_peak`."""
        self._cuda.synchronize(self._device)
        return int(self._cuda.max_memory_allocated(self._device))


def keep_pages(keep: bool) -> None:
    """Let glibc keep freed memory, or have it return all of it at once.

    An output that torch allocates pays a page fault for every page that the system has to supply. Kept, the
    memory of an output under 32 MiB (glibc's limit for its heap) is used again and only the kernel is timed;
    returned, every call pays, which is the lesson of one case. Does nothing on other C libraries: the recorded
    page faults show it.

    The setting is the process's and glibc has no way to read it, so what was set before cannot be put back. A run
    ends with `keep_pages(True)`, under which later code allocates as usual and returns memory to the system later.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**30 if keep else 2**17)  # M_TRIM_THRESHOLD; 128 KiB is its default
        if not keep:
            libc.malloc_trim(0)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def _key(tensor: Any) -> int:
    """Identity of a tensor's storage. Unlike its address it tells tensors without memory ("meta") apart."""
    return int(tensor.untyped_storage()._cdata)
