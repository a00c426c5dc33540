"""Which of Flink's key groups a key falls into: two hashes, as Beam's Flink runner and Flink compute them."""

__all__ = ["key_group", "murmur3"]

_64, _32 = 2**64 - 1, 2**32 - 1
_C1, _C2 = 0x87C37B91114253D5, 0x4CF5AD432745937F


def key_group(encoded: bytes, groups: int) -> int:
    """Of a key of which the runner knows only its bytes (it writes their length before them).

    With Beam 2.70 a key's hash is the first four bytes of its 128 bits of MurmurHash 3; Flink mixes it once
    more. For a version that hashes otherwise the answer is some group, and not the one that the key is in.
    """
    length, size = bytearray(), len(encoded)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return _mixed(murmur3(bytes(length) + encoded) & _32) % groups


def murmur3(data: bytes) -> int:
    """The lower half of MurmurHash 3, x64, 128 bits, seed 0."""
    h1 = h2 = 0
    whole = len(data) // 16 * 16
    for at in range(0, whole, 16):
        h1 ^= _first(int.from_bytes(data[at : at + 8], "little"))
        h1 = ((_rotated(h1, 27, 64) + h2) * 5 + 0x52DCE729) & _64
        h2 ^= _second(int.from_bytes(data[at + 8 : at + 16], "little"))
        h2 = ((_rotated(h2, 31, 64) + h1) * 5 + 0x38495AB5) & _64
    rest = data[whole:]
    h2 ^= _second(int.from_bytes(rest[8:], "little"))
    h1 ^= _first(int.from_bytes(rest[:8], "little"))
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & _64
    h2 = (h2 + h1) & _64
    return (_finished(h1) + _finished(h2)) & _64


def _first(k: int) -> int:
    return _rotated(k * _C1 & _64, 31, 64) * _C2 & _64


def _second(k: int) -> int:
    return _rotated(k * _C2 & _64, 33, 64) * _C1 & _64


def _finished(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & _64
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & _64
    return h ^ h >> 33


def _mixed(code: int) -> int:
    """Flink's own, of 32 bits; never negative."""
    code = _rotated(code * 0xCC9E2D51 & _32, 15, 32) * 0x1B873593 & _32
    code = (_rotated(code, 13, 32) * 5 + 0xE6546B64) & _32 ^ 4
    code = (code ^ code >> 16) * 0x85EBCA6B & _32
    code = (code ^ code >> 13) * 0xC2B2AE35 & _32
    code ^= code >> 16
    return code if code < 2**31 else (2**32 - code) % 2**31


def _rotated(value: int, by: int, bits: int) -> int:
    return (value << by | value >> bits - by) & ((1 << bits) - 1)
