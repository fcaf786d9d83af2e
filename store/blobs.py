"""A capture's bodies and texts as one zstd frame, made with a dictionary of what its task's exchanges share.

    frame = zstd(lengths of all parts but the last, as LEB128; then the parts), without zstd's magic number

Nothing in it says which dictionary it needs: the row does. Exact bytes come back, or BadFrame is raised.
"""

import hashlib
import threading
from collections.abc import Sequence
from functools import lru_cache

import zstandard

PARTS = 4  #: request, response, prompt_text, answer_text
LEVEL = 3
LARGEST = 1 << 30  # bytes that are unpacked at most
ALONE = 1 << 20  # from so many bytes on a dictionary makes no difference

_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    LEVEL, format=_FORMAT, write_content_size=True, write_dict_id=False, write_checksum=True
)


class BadFrame(Exception):
    """A capture's packed bodies cannot be read."""


class Dictionary:
    """A zstd dictionary, ready for use. Not to be shared between threads."""

    def __init__(self, content: bytes) -> None:
        """`content` may be any bytes; what begins as a trained dictionary is one. Raises zstandard.ZstdError for a broken one."""
        self.content = content
        data = zstandard.ZstdCompressionDict(content)
        data.precompute_compress(compression_params=_PARAMETERS)
        self._compressor = zstandard.ZstdCompressor(dict_data=data, compression_params=_PARAMETERS)

    def pack(self, parts: Sequence[bytes]) -> bytes:
        """The parts as one frame."""
        return self._compressor.compress(_join(parts))


def pack(parts: Sequence[bytes]) -> bytes:
    """The parts as one frame that needs no dictionary."""
    return zstandard.ZstdCompressor(compression_params=_PARAMETERS).compress(_join(parts))


def unpack(frame: bytes, dictionary: bytes | None) -> list[bytes]:
    """The parts in a frame; `dictionary` is the content of the one it was packed with. Raises BadFrame."""
    try:
        size = zstandard.get_frame_parameters(frame, format=_FORMAT).content_size
        if not 0 < size <= LARGEST:
            raise BadFrame(f"it says that it holds {size:,} bytes")
        return _split(_decompressor(dictionary, threading.get_ident()).decompress(frame))
    except (zstandard.ZstdError, IndexError) as error:
        raise BadFrame(str(error)) from error


def name(content: bytes) -> int:
    """A dictionary's id: the first 63 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def seal(content: bytes) -> bytes:
    """A dictionary as it is stored."""
    return zstandard.ZstdCompressor(level=19).compress(content)


@lru_cache(maxsize=256)
def unseal(packed: bytes, id: int) -> bytes:
    """The dictionary that was stored. Raises BadFrame if it is not the one with this id."""
    try:
        content = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise BadFrame(f"dictionary {id}: {error}") from error
    if name(content) != id:
        raise BadFrame(f"dictionary {id} is not what it was")
    return content


@lru_cache(maxsize=256)
def _decompressor(dictionary: bytes | None, _thread: int) -> zstandard.ZstdDecompressor:
    """One a thread: none may be used by two at once."""
    data = None if dictionary is None else zstandard.ZstdCompressionDict(dictionary)
    return zstandard.ZstdDecompressor(dict_data=data, format=_FORMAT)


def _join(parts: Sequence[bytes]) -> bytes:
    head = bytearray()
    for part in parts[:-1]:
        left = len(part)
        while left > 127:
            head.append(left & 127 | 128)
            left >>= 7
        head.append(left)
    return b"".join((head, *parts))


def _split(whole: bytes) -> list[bytes]:
    at, sizes = 0, []
    for _ in range(PARTS - 1):
        size = shift = 0
        while True:
            byte = whole[at]
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        sizes.append(size)
    if at + sum(sizes) > len(whole):
        raise BadFrame("its parts are longer than all of it")
    parts = []
    for size in sizes:
        parts.append(whole[at : at + size])
        at += size
    return [*parts, whole[at:]]
